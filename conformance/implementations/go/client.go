package weave

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

// DefaultAddress is where weaved listens and the command weave looks: $WEAVE_SOCKET, else
// $XDG_RUNTIME_DIR/weave/weave.sock.
func DefaultAddress() (string, error) {
	if address := os.Getenv("WEAVE_SOCKET"); address != "" {
		return address, nil
	}
	if folder := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(folder) {
		return filepath.Join(folder, "weave", "weave.sock"), nil
	}
	return "", errors.New("neither WEAVE_SOCKET nor XDG_RUNTIME_DIR is set: name the server's socket")
}

// NewRequest asks for an image of a prompt with what suits the real model: 512×512 pixels, 28 steps, guidance 7, and a
// seed of the server's choice.
func NewRequest(prompt string) *Request {
	return &Request{Width: 512, Height: 512, Steps: 28, CFGScale: 7, Prompts: SamePrompt(prompt)}
}

// A Client asks a server for one image after the other. It connects when it first has to, and again after a call that
// broke off. It is not for several goroutines at a time: give each its own.
type Client struct {
	network, address string
	token            []byte
	conn             net.Conn // nil before the first call, and after one that left it out of step
	answers          *AnswerReader
	lastID           uint64
}

// NewClient is a client for the server at address, as [Network] understands it, or where [DefaultAddress] says if it is
// empty. token is for TCP, the 64 hexadecimal digits of the server's --token-file, which the server must know, or empty.
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

// Generate has one image made and waits for it, until ctx is done. A server may give up an image for which nobody waits
// any more. The request's RequestID is not used: the client gives each its own.
//
// An [*Error] is the server's answer; a [*FieldError] says what is wrong with the request (nothing was sent then) or, if
// its Rule is not that of a request, how the server broke the protocol. Other errors are ctx's or the connection's. The
// client may be used again after each of them.
func (c *Client) Generate(ctx context.Context, request *Request) (*Response, error) {
	asked := *request
	asked.RequestID = c.lastID + 1
	frame, err := asked.AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	c.lastID++
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.conn == nil {
		if err := c.connect(ctx); err != nil {
			return nil, err
		}
	}

	conn := c.conn
	// Whoever is in Read or Write is woken by a deadline that has passed.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	response, err := c.ask(&asked, frame)
	var answer *Error
	if !stop() || err != nil && (!errors.As(err, &answer) || answer.RequestID == 0) {
		c.Close() // it may be out of step, has a deadline, or was given up by the server (W1-CON-008)
	}
	if answer == nil && err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return response, err
}

func (c *Client) connect(ctx context.Context) error {
	conn, err := new(net.Dialer).DialContext(ctx, c.network, c.address)
	if err != nil {
		return err
	}
	if len(c.token) > 0 && c.network == "tcp" { // over a Unix socket the kernel says who connects
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		err := prove(conn, c.token)
		if !stop() {
			err = ctx.Err()
		}
		if err != nil {
			conn.Close()
			return err
		}
	}
	c.conn, c.answers = conn, NewAnswerReader(conn)
	return nil
}

func (c *Client) ask(request *Request, frame []byte) (*Response, error) {
	// When it fails the answer may tell why, if the server could still send one (W1-CON-008).
	_, writeErr := c.conn.Write(frame)
	response, err := c.answers.Next()
	var answer *Error
	switch {
	case errors.As(err, &answer):
		if answer.RequestID != request.RequestID && answer.RequestID != 0 {
			return nil, wrong("request_id", answer.RequestID, fmt.Sprint(request.RequestID), "W1-CON-002")
		}
		return nil, answer
	case err == io.EOF && writeErr != nil:
		return nil, writeErr
	case err == io.EOF: // before its answer
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case response.RequestID != request.RequestID:
		return nil, wrong("request_id", response.RequestID, fmt.Sprint(request.RequestID), "W1-CON-002")
	case response.Width != request.Width || response.Height != request.Height:
		size := fmt.Sprintf("%d×%d", response.Width, response.Height)
		return nil, &FieldError{"image size", size, fmt.Sprintf("%d×%d", request.Width, request.Height), "W1-RSP-002"}
	}
	return response, nil
}

// Close closes the connection, if there is one. The next call would make another.
func (c *Client) Close() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn, c.answers = nil, nil
	return err
}

// Image is the response as package image, and what encodes images, has it. Pixels with four channels are shared with it.
func (r *Response) Image() *image.NRGBA {
	made := &image.NRGBA{Pix: r.Pixels, Stride: int(r.Width) * 4, Rect: image.Rect(0, 0, int(r.Width), int(r.Height))}
	if r.Channels == 3 {
		made.Pix = make([]byte, len(r.Pixels)/3*4)
		for from, to := 0, 0; from < len(r.Pixels); from, to = from+3, to+4 {
			copy(made.Pix[to:], r.Pixels[from:from+3])
			made.Pix[to+3] = 0xFF
		}
	}
	return made
}
