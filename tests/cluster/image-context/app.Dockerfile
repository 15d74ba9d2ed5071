FROM localhost/tools:1
COPY server.py client.py /
CMD ["python3", "/server.py"]
