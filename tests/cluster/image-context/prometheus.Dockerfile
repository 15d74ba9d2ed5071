FROM localhost/tools:1
COPY prometheus /usr/local/bin/prometheus
ENTRYPOINT ["/usr/local/bin/prometheus"]
