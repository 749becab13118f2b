package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// unixListener removes its socket's file when it is closed, unless somebody has put another one there.
type unixListener struct {
	*net.UnixListener
	path   string
	file   fs.FileInfo
	remove sync.Once
}

// listenUnix makes a socket that only this user can open (W1-TRN-002). A socket's file that nobody listens at any more is
// replaced.
func listenUnix(path string) (net.Listener, error) {
	// Whoever else starts at the same path waits here, so that nobody's new socket is taken for a stale one.
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer folder.Close() // which unlocks it
	if err := syscall.Flock(int(folder.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", folder.Name(), err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}

	before := syscall.Umask(0o177) // mode 0600 from the first moment on
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	syscall.Umask(before)
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	file, err := os.Lstat(path)
	if err != nil {
		listener.Close()
		return nil, err
	}
	return &unixListener{UnixListener: listener, path: path, file: file}, nil
}

func removeStale(path string) error {
	file, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if file.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("somebody listens at %s already", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("whether somebody listens at %s can't be told: %w", path, err)
	}
	return os.Remove(path)
}

func (l *unixListener) Close() error {
	l.remove.Do(func() {
		if file, err := os.Lstat(l.path); err == nil && os.SameFile(file, l.file) {
			os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}

// peerUser is the user id of the process that connected, as the kernel gives it.
func peerUser(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *syscall.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) {
		peer, optErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, optErr); err != nil {
		return 0, err
	}
	return int(peer.Uid), nil
}
