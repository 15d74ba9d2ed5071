module ztunnel.test/http2client

go 1.24
