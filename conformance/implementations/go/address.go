package weave

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
)

// Network tells what address means: a TCP host:port or tcp://host:port, or else the path of a Unix socket. Its results
// are for net.Dial and net.Listen. A path that looks like host:port needs a slash: "./a:1".
func Network(address string) (network, resolved string, err error) {
	if address == "" {
		return "", "", fmt.Errorf("the address is empty: it must be the path of a Unix socket or host:port")
	}
	address, tcp := strings.CutPrefix(address, "tcp://")
	host, port, err := net.SplitHostPort(address)
	_, bad := strconv.ParseUint(port, 10, 16)
	isTCP := err == nil && bad == nil && !strings.Contains(address, "/")
	if tcp && !isTCP {
		return "", "", fmt.Errorf("tcp://%s is not tcp://host:port", address)
	}
	if isTCP {
		if host == "" { // it would mean all interfaces to net.Listen, which nobody asked for (W1-SEC-004)
			return "", "", fmt.Errorf("%q has no host: write 127.0.0.1:%s for this machine alone", address, port)
		}
		return "tcp", address, nil
	}
	if longest := len(syscall.RawSockaddrUnix{}.Path) - 1; len(address) > longest {
		return "", "", fmt.Errorf("the path of a Unix socket has at most %d bytes, this one has %d: %s",
			longest, len(address), address)
	}
	if address[0] == '@' { // which would mean a Linux socket without a file to net
		address = "./" + address
	}
	return "unix", address, nil
}
