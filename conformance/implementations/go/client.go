package weave

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// systemSocket is that of a weaved for all users of a machine; a variable for tests.
var systemSocket = "/run/weave/weave.sock"

// DefaultAddress is where weaved listens and the command weave looks: $WEAVE_SOCKET, else
// $XDG_RUNTIME_DIR/weave/weave.sock, or ~/.weave/weave.sock without that variable. If nothing is there it is
// /run/weave/weave.sock, if there is something.
func DefaultAddress() (string, error) {
	if address := strings.TrimSpace(os.Getenv("WEAVE_SOCKET")); address != "" {
		return address, nil
	}
	var usual string
	home := os.Getenv("HOME")
	if folder := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(folder) {
		usual = filepath.Join(folder, "weave", "weave.sock")
	} else if filepath.IsAbs(home) && filepath.Clean(home) != "/" { // which users have who can't log in
		usual = filepath.Join(home, ".weave", "weave.sock")
	}
	if usual != "" && (isThere(usual) || !isThere(systemSocket)) {
		return usual, nil
	}
	if isThere(systemSocket) {
		return systemSocket, nil
	}
	return "", fmt.Errorf("where the server listens isn't known: WEAVE_SOCKET, XDG_RUNTIME_DIR and HOME say nothing, and "+
		"nothing is at %s; name its socket", systemSocket)
}

// isThere tells whether something is there, be it that this user may not look.
func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil || errors.Is(err, fs.ErrPermission)
}

// NewRequest asks for an image of a prompt with what suits the real model: 512×512 pixels, 28 steps, guidance 7, and a
// seed that the client draws.
func NewRequest(prompt string) *Request {
	return &Request{Width: 512, Height: 512, Steps: 28, CFGScale: 7, Prompts: SamePrompt(prompt)}
}

// A Client asks a server for images. Any number of goroutines may use it: each call that is under way has a connection of
// its own, and those that are over leave theirs to the next ones. A server takes a limited number of connections and
// requests from one user (weaved: 32) and answers what is beyond that with [CodeBusy].
type Client struct {
	network, address string
	token            []byte

	lock   sync.Mutex
	idle   []*link
	lastID uint64
}

// A link is a connection that is in step.
type link struct {
	conn    net.Conn
	answers *AnswerReader
	heard   int // bytes of what is being answered
}

func (l *link) Read(buf []byte) (int, error) {
	n, err := l.conn.Read(buf)
	l.heard += n
	return n, err
}

// An UnreachableError says that nobody answers at an address, or not this user; nothing was sent.
type UnreachableError struct {
	Address string
	Err     error // what the system says
}

func (e *UnreachableError) Error() string {
	todo := "start weaved, or name the address of one that runs"
	if errors.Is(e.Err, fs.ErrPermission) {
		todo = "only some users may connect there: weaved lets further ones in with --allow-uids or --allow-gids"
	}
	why := e.Err
	for errors.Unwrap(why) != nil { // which name the address and the system call
		why = errors.Unwrap(why)
	}
	return fmt.Sprintf("no server answers at %s (%v); %s", e.Address, why, todo)
}

func (e *UnreachableError) Unwrap() error {
	return e.Err
}

// NewClient is a client for the server at address: the path of a Unix socket, host:port or tcp://host:port ([Network]), or
// where [DefaultAddress] says if it is empty. token is for TCP, the 64 hexadecimal digits of the server's --token-file,
// which the server must know, or empty. NewClient("", "") is for a weaved of this user on this machine. Nothing is
// connected before the first call.
func NewClient(address, token string) (*Client, error) {
	if address == "" {
		var err error
		if address, err = DefaultAddress(); err != nil {
			return nil, err
		}
	}
	network, resolved, err := Network(address)
	if err != nil {
		return nil, err
	}
	raw, err := hex.DecodeString(token)
	if err != nil || len(raw) != 32 && token != "" {
		return nil, errors.New("a token must have 64 hexadecimal digits and nothing else")
	}
	return &Client{network: network, address: resolved, token: raw}, nil
}

// Generate has one image made and waits for it, until ctx is done; that closes the connection, and a server may give up
// an image for which nobody waits any more. The request's RequestID is not used: the client gives each its own. Where its
// Seed is 0 the client draws one, of 32 bits. The response's Request says what was asked in the end.
//
// An [*Error] is the server's answer; a [*FieldError] says what is wrong with the request (nothing was sent then) or, if
// its Rule is not that of a request, how the server broke the protocol; an [*UnreachableError] that nobody answers. Other
// errors are ctx's or the connection's. The client may be used again after each of them. If the server has closed a
// connection that was idle, the request is sent once more on a new one, unless anything of an answer had come: that is
// safe, since it always has a seed.
func (c *Client) Generate(ctx context.Context, request *Request) (*Response, error) {
	asked := *request
	if asked.Seed == 0 {
		asked.Seed = 1 + rand.Uint64N(1<<32-1) // what other programs take, and not too much to type
	}
	used, err := c.take(&asked)
	if err != nil {
		return nil, err
	}
	frame, err := asked.AppendBinary(nil)
	if err != nil {
		c.leave(used)
		return nil, inWords(err, &asked)
	}
	if used != nil {
		response, err := c.exchange(ctx, used, &asked, frame)
		if err != errHungUp {
			return response, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fresh, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	response, err := c.exchange(ctx, fresh, &asked, frame)
	if err == errHungUp {
		err = fmt.Errorf("%w before its answer: %w", errHungUp, io.ErrUnexpectedEOF)
	}
	return response, err
}

// take gives the request its number, and returns a connection that is idle, if there is one.
func (c *Client) take(request *Request) (*link, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.lastID++
	request.RequestID = c.lastID
	for len(c.idle) > 0 {
		last := c.idle[len(c.idle)-1]
		c.idle = c.idle[:len(c.idle)-1]
		if isQuiet(last.conn) {
			return last, nil
		}
		last.conn.Close() // whatever came unasked, it is the end
	}
	return nil, nil
}

func (c *Client) leave(used *link) {
	if used != nil {
		c.lock.Lock()
		defer c.lock.Unlock()
		c.idle = append(c.idle, used)
	}
}

// inWords says of a prompt that goes to all encoders what is wrong with it, rather than of the first one's.
func inWords(err error, request *Request) error {
	var fault *FieldError
	text := request.Prompts[ClipL].Text
	if !errors.As(err, &fault) || !strings.HasPrefix(fault.Field, "clip_l") || request.Prompts != SamePrompt(text) {
		return err
	}
	said := *fault
	said.Field = "prompt"
	switch {
	case text == "":
		said.Value, said.Want = "empty", "1 to 2048 bytes"
	case len(text) > MaxPromptLen:
		said.Value, said.Want = fmt.Sprintf("%d bytes long", len(text)), "1 to 2048 bytes"
	}
	return &said
}

// errHungUp: the connection has ended before anything of an answer came.
var errHungUp = errors.New("the server closed the connection")

// exchange asks on a connection, and keeps it if it can be used again.
func (c *Client) exchange(ctx context.Context, on *link, request *Request, frame []byte) (*Response, error) {
	// Whoever is in Read or Write is woken by a deadline that has passed.
	stop := context.AfterFunc(ctx, func() { on.conn.SetDeadline(time.Unix(1, 0)) })
	response, err := on.ask(request, frame)
	var answer *Error
	if !stop() || err != nil && (!errors.As(err, &answer) || answer.RequestID == 0) {
		on.conn.Close() // it may be out of step, has a deadline, or was given up by the server (W1-CON-008)
	} else {
		c.leave(on)
	}
	if answer == nil && err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return response, err
}

func (c *Client) connect(ctx context.Context) (*link, error) {
	conn, err := new(net.Dialer).DialContext(ctx, c.network, c.address)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &UnreachableError{c.address, err}
	}
	if len(c.token) > 0 && c.network == "tcp" { // over a Unix socket the kernel says who connects
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		err := prove(conn, c.token)
		if !stop() {
			err = ctx.Err()
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
	}
	fresh := &link{conn: conn}
	fresh.answers = NewAnswerReader(fresh)
	return fresh, nil
}

func (l *link) ask(request *Request, frame []byte) (*Response, error) {
	// When it fails the answer may tell why, if the server could still send one (W1-CON-008).
	l.heard = 0
	_, writeErr := l.conn.Write(frame)
	response, err := l.answers.Next()
	var answer *Error
	switch {
	case errors.As(err, &answer):
		if answer.RequestID != request.RequestID && answer.RequestID != 0 {
			return nil, wrong("request_id", answer.RequestID, fmt.Sprint(request.RequestID), "W1-CON-002")
		}
		return nil, answer
	case err == io.EOF, errors.Is(err, syscall.ECONNRESET) && l.heard == 0: // the latter with some of ours unread
		if writeErr != nil && !errors.Is(writeErr, syscall.EPIPE) && !errors.Is(writeErr, syscall.ECONNRESET) {
			return nil, writeErr
		}
		return nil, errHungUp
	case err != nil:
		return nil, err
	case response.RequestID != request.RequestID:
		return nil, wrong("request_id", response.RequestID, fmt.Sprint(request.RequestID), "W1-CON-002")
	case response.Width != request.Width || response.Height != request.Height:
		size := fmt.Sprintf("%d×%d", response.Width, response.Height)
		return nil, &FieldError{"image size", size, fmt.Sprintf("%d×%d", request.Width, request.Height), "W1-RSP-002"}
	}
	response.Request = request
	return response, nil
}

// Close closes the connections that are idle. The next call would make another.
func (c *Client) Close() error {
	c.lock.Lock()
	defer c.lock.Unlock()
	var err error
	for _, each := range c.idle {
		err = errors.Join(err, each.conn.Close())
	}
	c.idle = nil
	return err
}
