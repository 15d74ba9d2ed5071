FROM localhost/tools:1
COPY program /usr/local/bin/program
ENTRYPOINT ["/usr/local/bin/program"]
