//go:build unix

package weave

import (
	"net"
	"syscall"
)

// isQuiet tells whether the server has neither closed an idle connection nor said anything on it.
func isQuiet(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	var peeked error
	err = raw.Read(func(fd uintptr) bool { // it doesn't block: package net sees to that
		_, _, peeked = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		return true
	})
	return err == nil && peeked == syscall.EAGAIN
}
