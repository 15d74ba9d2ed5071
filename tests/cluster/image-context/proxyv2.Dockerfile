FROM localhost/tools:1
COPY envoy /usr/local/bin/envoy
COPY pilot-agent /usr/local/bin/pilot-agent
COPY envoy_bootstrap_tmpl.json /var/lib/istio/envoy/envoy_bootstrap_tmpl.json
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/pilot-agent"]
