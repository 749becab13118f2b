package main

import (
	"errors"
	"net"
	"time"

	"weave.example/weave"
)

const (
	places  = 16                   // in the queue: what comes beyond gets BUSY (W1-CON-007)
	atOnce  = 64                   // requests of one connection; it is not read from then (W1-CON-014)
	drawing = 2 * time.Millisecond // an image
)

// An order is a request in the queue.
type order struct {
	server  *server
	replies *replies
	request *weave.Request
	came    time.Time
}

func newOrder(s *server, r *replies, request *weave.Request) *order {
	return &order{s, r, request, time.Now()}
}

// replies are a connection's answers on their way to the goroutine that writes them, each whole (W1-CON-006).
type replies struct {
	slots chan struct{}
	out   chan [][]byte
}

var queue = func() chan *order {
	queue := make(chan *order, places)
	go func() {
		for next := range queue {
			next.draw()
		}
	}()
	return queue
}()

func (o *order) draw() {
	if o.server.isEnding() {
		o.replies.refuse(o.request.RequestID, weave.CodeShuttingDown, "the server is ending")
		return
	}
	begun := time.Now()
	time.Sleep(drawing)
	head := weave.ResponseHead{RequestID: o.request.RequestID, Width: o.request.Width, Height: o.request.Height, Channels: 3}
	head.GenerationTime = time.Since(begun)
	frame, _ := head.AppendBinary(nil)
	pieces := [][]byte{frame}
	for range o.request.Height / weave.SideStep {
		pieces = append(pieces, o.server.tiles[o.request.Width/weave.SideStep])
	}
	o.replies.out <- pieces
}

func (r *replies) refuse(id uint64, code weave.Code, message string) {
	frame, _ := (&weave.Error{RequestID: id, Code: code, Message: message}).AppendBinary(nil)
	r.out <- [][]byte{frame}
}

func (s *server) serveQueued(conn net.Conn) {
	r := &replies{make(chan struct{}, atOnce), make(chan [][]byte, atOnce)}
	written := make(chan struct{})
	go r.write(conn, written)
	last := s.readQueued(conn, r)
	for range atOnce {
		r.slots <- struct{}{} // until what is under way is answered (W1-CON-010)
	}
	if last != nil {
		r.refuse(0, last.Code, last.Message)
	}
	close(r.out)
	<-written
	linger(conn)
}

func (r *replies) write(conn net.Conn, written chan struct{}) {
	defer close(written)
	var lost error
	for pieces := range r.out {
		if lost == nil {
			if lost = send(conn, pieces...); lost != nil {
				conn.Close()
			}
		}
		<-r.slots
	}
}

// readQueued returns why the stream is given up, if it is.
func (s *server) readQueued(conn net.Conn, r *replies) *weave.Error {
	requests := weave.NewRequestReader(conn)
	for {
		r.slots <- struct{}{}
		request, err := requests.Next()
		refusal := new(weave.Error)
		switch {
		case err == nil:
			select {
			case queue <- newOrder(s, r, request):
			default:
				r.refuse(request.RequestID, weave.CodeBusy, "the queue is full")
			}
		case errors.As(err, &refusal) && !refusal.Code.Closes():
			r.refuse(refusal.RequestID, refusal.Code, refusal.Message)
		default:
			<-r.slots
			if errors.As(err, &refusal) {
				return refusal
			}
			return nil
		}
	}
}
