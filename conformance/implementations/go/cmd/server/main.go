// Command server answers every Weave request with a checkerboard of the size that was asked for, or with the right error.
//
// Each connection has a goroutine that reads a request, writes its answer, and only then reads on. So answers come in the
// order of their requests, a client that doesn't take its answers is not read from either, and what one connection costs
// is bounded (W1-SEC-002): a buffer for one request and a stack.
//
// Exit codes: 0 ended by SIGTERM or SIGINT, 1 the address can't be listened at, 2 wrong usage.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"weave.example/weave"
)

const (
	// A client that takes nothing of its answers for so long is left (W1-CON-011).
	stallLimit = time.Minute
	// How long a server that closes goes on taking what a client still sends, so that the last answer isn't lost.
	lingerLimit = 2 * time.Second
	// When the server ends: how long it answers requests that were sent already, and how long it waits for clients to
	// take the answers that were begun.
	lastCallLimit = 200 * time.Millisecond
	endLimit      = 10 * time.Second
	// How many connections at once are told that there is no place for them; those beyond are closed without a word.
	maxTurnedAway = 64
)

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	maxConnections := flags.Int("max-connections", 4096, "the `MOST` connections at once; others get BUSY")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: server [OPTIONS] ADDRESS\nADDRESS is the path of a Unix socket or host:port.")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() != 1 || *maxConnections < 1 {
		flags.Usage()
		return 2
	}
	address := flags.Arg(0)
	network, resolved, err := weave.Network(address)
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		return 2
	}

	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	var listener net.Listener
	if network == "unix" {
		listener, err = listenUnix(resolved)
	} else {
		listener, err = net.Listen(network, resolved)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		return 1
	}
	if _, port, _ := net.SplitHostPort(resolved); network == "tcp" && port == "0" {
		address = listener.Addr().String() // the system chose the port
	}

	s := newServer(listener, *maxConnections)
	ended := make(chan struct{})
	go func() {
		s.accept()
		close(ended)
	}()
	fmt.Fprintln(os.Stderr, "listening on", address)

	<-signals
	s.end()
	select {
	case <-ended:
	case <-signals: // a second one: not to wait
	case <-time.After(endLimit):
	}
	return 0
}

type server struct {
	listener       net.Listener
	maxConnections int
	owner          int // the user id whom a Unix socket serves
	tiles          [weave.MaxSide/weave.SideStep + 1][]byte

	mu     sync.Mutex
	conns  map[net.Conn]bool
	ending bool
	serves sync.WaitGroup
}

func newServer(listener net.Listener, maxConnections int) *server {
	s := &server{
		listener:       listener,
		maxConnections: maxConnections,
		owner:          os.Geteuid(),
		conns:          make(map[net.Conn]bool),
	}
	for i := range s.tiles {
		s.tiles[i] = checkerboard(i*weave.SideStep, weave.SideStep)
	}
	return s
}

// accept takes connections until the listener is closed, and returns when all of them are done.
func (s *server) accept() {
	defer s.serves.Wait()
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Such as having no file descriptor left, which passes, and of which nothing tells when.
			fmt.Fprintln(os.Stderr, "server:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if unix, ok := conn.(*net.UnixConn); ok { // before a byte is read (W1-TRN-003), without an answer (W1-TRN-004)
			if uid, err := peerUser(unix); err != nil || uid != s.owner {
				conn.Close()
				continue
			}
		}
		s.start(conn)
	}
}

// start gives the connection a goroutine to serve it, to tell it that there is no place, or closes it.
func (s *server) start(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	talk := s.serve
	switch {
	case s.ending || len(s.conns) >= s.maxConnections+maxTurnedAway:
		conn.Close()
		return
	case len(s.conns) >= s.maxConnections:
		talk = s.turnAway
	}
	s.conns[conn] = true
	s.serves.Add(1)
	go func() {
		defer s.serves.Done()
		talk(conn)
		conn.Close()
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
}

// end stops accepting. Connections get a last call: answers that were begun are finished, and requests that are there
// already are answered with SHUTTING_DOWN (W1-CON-009).
func (s *server) end() {
	s.listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	for conn := range s.conns {
		conn.SetReadDeadline(time.Now().Add(lastCallLimit))
	}
}

func (s *server) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

// serve answers each request of a connection once, in order (W1-CON-002), until the client is done, gone or lost.
func (s *server) serve(conn net.Conn) {
	requests := weave.NewRequestReader(conn)
	for {
		request, err := requests.Next()
		refusal := new(weave.Error)
		switch {
		case err == nil && s.isEnding():
			err = sendError(conn, &weave.Error{
				RequestID: request.RequestID, Code: weave.CodeShuttingDown, Message: "the server is ending",
			})
		case err == nil:
			err = s.sendImage(conn, request)
			if s.isEnding() { // the last call was missed while the image was sent
				conn.SetReadDeadline(time.Now().Add(lastCallLimit))
			}
		case errors.As(err, &refusal):
			err = sendError(conn, refusal)
			if refusal.Code.Closes() {
				linger(conn)
				return
			}
		case errors.Is(err, os.ErrDeadlineExceeded): // the last call is over
			linger(conn)
			return
		}
		if err != nil { // mostly io.EOF: the client has all it asked for (W1-CON-010)
			return
		}
	}
}

func (s *server) turnAway(conn net.Conn) { // W1-CON-008
	err := sendError(conn, &weave.Error{
		Code: weave.CodeBusy, Message: fmt.Sprintf("%d connections are open, at most %[1]d may be", s.maxConnections),
	})
	if err == nil {
		linger(conn)
	}
}

// sendImage writes the response to a request. Pixels are not made but pointed at: an image is a stack of tiles.
func (s *server) sendImage(conn net.Conn, request *weave.Request) error {
	head := weave.ResponseHead{
		RequestID: request.RequestID,
		Width:     request.Width,
		Height:    request.Height,
		Channels:  3,
	}
	frame, err := head.AppendBinary(nil)
	if err != nil {
		return err
	}
	tile := s.tiles[request.Width/weave.SideStep]
	if err := send(conn, frame, tile); err != nil {
		return err
	}
	for range request.Height/weave.SideStep - 1 {
		if err := send(conn, tile); err != nil {
			return err
		}
	}
	return nil
}

func sendError(conn net.Conn, answer *weave.Error) error {
	frame, err := answer.AppendBinary(nil)
	if err != nil {
		return err
	}
	return send(conn, frame)
}

// send writes pieces, as slowly as the client takes them.
func send(conn net.Conn, pieces ...[]byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(stallLimit)); err != nil {
		return err
	}
	buffers := net.Buffers(pieces)
	_, err := buffers.WriteTo(conn)
	return err
}

// linger ends the server's direction and drops what still comes. To close with bytes unread would reset the connection,
// and could take the last answer from the client before it has read it.
func linger(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		conn.SetReadDeadline(time.Now().Add(lingerLimit))
		io.Copy(io.Discard, conn)
	}
}

// checkerboard makes rows of RGB pixels in squares of 8×8, black and white in turn, beginning with black.
func checkerboard(width, height int) []byte {
	const square = 8
	row := make([]byte, 3*(width+square)) // one square too long: the odd rows begin with its second
	for i := range row {
		if i/(3*square)%2 == 1 {
			row[i] = 0xFF
		}
	}
	board := make([]byte, 0, 3*width*height)
	for y := range height {
		begin := y / square % 2 * 3 * square
		board = append(board, row[begin:begin+3*width]...)
	}
	return board
}
