//go:build !linux

package main

import (
	"errors"
	"fmt"
	"net"
)

var errNoCredentials = fmt.Errorf("%w: Go's standard library tells who connects to a Unix socket on Linux only; "+
	"use a host:port", errors.ErrUnsupported)

// listenUnix refuses: without the peer's credentials nobody may be served (W1-TRN-003).
func listenUnix(string) (net.Listener, error) { return nil, errNoCredentials }

func peerUser(*net.UnixConn) (int, error) { return 0, errNoCredentials }
