// Opens tunnels to an application with Go's own HTTP/2 client, many at once on one connection.
//
// usage: http2client SHIM APPLICATION STREAMS BYTES    SHIM: a plain port that leads to 15008 through TLS
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
)

// Sends data through a tunnel to an echo, ends its side, and compares what comes back with it.
func converse(client *http.Client, shim, application string, data []byte) error {
	request := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Scheme: "http", Host: shim},
		Host:   application,
		Header: http.Header{},
		Body:   io.NopCloser(bytes.NewReader(data)),
		// -1: a body of a length that is not said beforehand, as a tunnel has.
		ContentLength: -1,
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if !bytes.Equal(answer, data) {
		return fmt.Errorf("%d bytes came back of %d, or others", len(answer), len(data))
	}
	return nil
}

func run(arguments []string) error {
	if len(arguments) != 4 {
		return errors.New("four arguments are needed")
	}
	streams, err := strconv.Atoi(arguments[2])
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(arguments[3])
	if err != nil {
		return err
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	results := make(chan error)
	for number := range streams {
		go func() {
			data := bytes.Repeat([]byte{byte(number), 0, 255}, size/3)
			results <- converse(client, arguments[0], arguments[1], data)
		}()
	}
	var failed error
	for range streams {
		failed = errors.Join(failed, <-results)
	}
	// A GET is refused, and the connection goes on.
	response, err := client.Get("http://" + arguments[0] + "/")
	if err != nil {
		return errors.Join(failed, err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		failed = errors.Join(failed, fmt.Errorf("a GET is answered with %d", response.StatusCode))
	}
	return errors.Join(failed, converse(client, arguments[0], arguments[1], []byte("last")))
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("content")
}
