//go:build programs

// Package programs names what is built from this module, so that go.mod keeps what it needs.
package programs

import _ "github.com/prometheus/prometheus/cmd/prometheus"
