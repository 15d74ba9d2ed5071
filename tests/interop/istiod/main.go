// Istiod's own discovery server, with a Kubernetes that is a map in memory, as a peer for our xDS client.
//
// Usage: istiod -cert server.pem -key server-key.pem [-objects objects.yaml] [-multi-network]
//
// It prints one line of JSON with the address it listens at (TLS, ALPN h2, delta ADS of both workload types
// among all the others). Then each line on standard input is a command, answered by one line of JSON,
// {} or {"error": "..."}:
//
//	{"apply": "<YAML>"}    create or replace the Kubernetes objects
//	{"delete": "<YAML>"}   delete them (only kind, namespace and name matter)
//	{"hold": true}         cut all connections and refuse new ones; {"hold": false} ends it
//
// It ends when standard input does. Logs go to standard error.
package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	kerrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"istio.io/istio/pilot/pkg/features"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/schema/gvk"
	kubelib "istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/test"
)

// As istio's chart has it where several networks are one mesh.
const globalServices = `
serviceScopeConfigs:
- servicesSelector: {matchExpressions: [{key: istio.io/global, operator: In, values: ["true"]}]}
  scope: GLOBAL
`

type command struct {
	Apply  string `json:"apply"`
	Delete string `json:"delete"`
	Hold   *bool  `json:"hold"`
}

type answer struct {
	Address string `json:"address,omitempty"`
	Error   string `json:"error,omitempty"`
}

func main() {
	certificate := flag.String("cert", "", "PEM file: the server's certificate chain")
	key := flag.String("key", "", "PEM file: its private key")
	objects := flag.String("objects", "", "YAML file: Kubernetes objects to start with")
	multiNetwork := flag.Bool("multi-network", false, "send other networks as one workload a gateway and service")
	flag.Parse()

	features.EnableAmbient = true
	features.EnableAmbientWaypoints = true
	features.EnableAmbientMultiNetwork = *multiNetwork

	// Standard output is ours alone.
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"}
	options.SetDefaultOutputLevel(log.OverrideScopeName, log.WarnLevel)
	if err := log.Configure(options); err != nil {
		fail(err)
	}
	if err := test.Wrap(func(t test.Failer) { serve(t, *certificate, *key, *objects) }); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func serve(t test.Failer, certificate, key, objects string) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	initial := ""
	if objects != "" {
		text, err := os.ReadFile(objects)
		if err != nil {
			t.Fatal(err)
		}
		initial = string(text)
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gate := &gate{Listener: plain, open: map[net.Conn]struct{}{}}
	meshConfig := mesh.DefaultMeshConfig()
	if features.EnableAmbientMultiNetwork {
		if meshConfig, err = mesh.ApplyMeshConfig(globalServices, meshConfig); err != nil {
			t.Fatal(err)
		}
	}
	server := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		KubernetesObjectString: initial,
		MeshConfig:             meshConfig,
		ListenerBuilder: func() (net.Listener, error) {
			return tls.NewListener(gate, &tls.Config{
				Certificates: []tls.Certificate{pair},
				NextProtos:   []string{"h2"},
				MinVersion:   tls.VersionTLS13,
			}), nil
		},
	})

	out := json.NewEncoder(os.Stdout)
	say := func(a answer) {
		if err := out.Encode(a); err != nil {
			t.Fatal(err)
		}
	}
	say(answer{Address: plain.Addr().String()})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		if err := obey(server.KubeClient(), gate, lines.Bytes()); err != nil {
			say(answer{Error: err.Error()})
		} else {
			say(answer{})
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

func obey(client kubelib.Client, gate *gate, line []byte) error {
	var c command
	if err := json.Unmarshal(line, &c); err != nil {
		return err
	}
	if c.Hold != nil {
		gate.hold(*c.Hold)
	}
	if err := each(client, c.Apply, put); err != nil {
		return err
	}
	return each(client, c.Delete, remove)
}

type action func(t clienttesting.ObjectTracker, r schema.GroupVersionResource, o runtime.Object, namespace, name string) error

func put(t clienttesting.ObjectTracker, r schema.GroupVersionResource, o runtime.Object, namespace, name string) error {
	_, err := t.Get(r, namespace, name)
	if kerrors.IsNotFound(err) {
		return t.Create(r, o, namespace)
	}
	if err != nil {
		return err
	}
	return t.Update(r, o, namespace)
}

func remove(t clienttesting.ObjectTracker, r schema.GroupVersionResource, _ runtime.Object, namespace, name string) error {
	return t.Delete(r, namespace, name)
}

// each does something to every object of a text, in the fake client set that holds objects of its group.
func each(client kubelib.Client, text string, do action) error {
	decode := kubelib.IstioCodec.UniversalDeserializer().Decode
	for _, document := range strings.Split(text, "\n---\n") {
		if strings.TrimSpace(document) == "" {
			continue
		}
		object, kind, err := decode([]byte(document), nil, nil)
		if err != nil {
			return fmt.Errorf("%w in:\n%s", err, document)
		}
		named, err := meta.Accessor(object)
		if err != nil {
			return err
		}
		resource, known := gvk.ToGVR(config.FromKubernetesGVK(*kind))
		if !known {
			resource, _ = meta.UnsafeGuessKindToResource(*kind)
		}
		var set any = client.Kube()
		switch {
		case strings.Contains(kind.Group, "istio.io"):
			set = client.Istio()
		case strings.Contains(kind.Group, "gateway.networking"):
			set = client.GatewayAPI()
		}
		fake, ok := set.(interface {
			Tracker() clienttesting.ObjectTracker
		})
		if !ok {
			return fmt.Errorf("the client for %s is not a fake one", kind)
		}
		if err := do(fake.Tracker(), resource, object, named.GetNamespace(), named.GetName()); err != nil {
			return err
		}
	}
	return nil
}

// gate is a listener whose connections can be cut and kept out.
type gate struct {
	net.Listener
	mu   sync.Mutex
	held bool
	open map[net.Conn]struct{}
}

type gated struct {
	net.Conn
	gate *gate
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		if !g.held {
			g.open[c] = struct{}{}
			g.mu.Unlock()
			return &gated{c, g}, nil
		}
		g.mu.Unlock()
		_ = c.Close()
	}
}

func (g *gate) hold(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = on
	if !on {
		return
	}
	for c := range g.open {
		_ = c.Close()
	}
	clear(g.open)
}

func (c *gated) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.open, c.Conn)
	c.gate.mu.Unlock()
	err := c.Conn.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
