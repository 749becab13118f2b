package weave

import "testing"

// SetSystemSocket has clients look there for the socket for all users, until the test ends.
func SetSystemSocket(t *testing.T, path string) {
	before := systemSocket
	systemSocket = path
	t.Cleanup(func() { systemSocket = before })
}
