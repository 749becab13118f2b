package weave

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// A RequestReader reads what a client sends. It looks at each byte once, keeps no more than the longest request, and
// takes nothing from its source that belongs to the frame after the one it reads.
type RequestReader struct {
	source io.Reader
	frame  [HeaderLen + MaxRequestPayload]byte
	ended  error
}

// NewRequestReader reads from a stream that may be cut anywhere (W1-TRN-001).
func NewRequestReader(source io.Reader) *RequestReader {
	return &RequestReader{source: source}
}

// Next returns the next request that can be served, or one of these errors:
//
//   - an [*Error]: the answer to a frame that can't be served. If its Code.Closes, close the connection after sending
//     it; otherwise go on.
//   - io.EOF: the client is done, between two frames.
//   - io.ErrUnexpectedEOF: the client is gone in the middle of a frame, to which there is no answer (W1-FRM-009).
//   - what the source says.
//
// All but the first kind of [*Error] are final: Next returns them ever after, without reading.
func (r *RequestReader) Next() (*Request, error) {
	if r.ended != nil {
		return nil, r.ended
	}
	request, err := r.next()
	var answer *Error
	if err != nil && (!errors.As(err, &answer) || answer.Code.Closes()) {
		r.ended = err
	}
	return request, err
}

func (r *RequestReader) next() (*Request, error) {
	h, err := readHeader(r.source, r.frame[:HeaderLen])
	if fault := (*FieldError)(nil); errors.As(err, &fault) {
		fault.Rule = "W1-FRM-004"
		return nil, refusal(0, CodeInvalidMagic, fault)
	}
	if err != nil {
		return nil, err
	}
	if h.payloadLen > MaxSkippedPayload {
		fault := wrong("payload_len", h.payloadLen, "at most 10485760", "W1-FRM-002")
		return nil, refusal(0, CodeTooLarge, fault)
	}
	kept := min(h.payloadLen, MaxRequestPayload)
	payload := r.frame[HeaderLen:][:kept]
	if err := readRest(r.source, payload); err != nil {
		return nil, err
	}
	request, answer := parseRequest(h, payload)
	if err := skip(r.source, h.payloadLen-kept); err != nil { // W1-FRM-003
		return nil, err
	}
	if answer != nil {
		return nil, answer
	}
	return request, nil
}

// An AnswerReader reads what a server sends.
type AnswerReader struct {
	source io.Reader
	ended  error
}

// NewAnswerReader reads from a stream that may be cut anywhere (W1-TRN-001).
func NewAnswerReader(source io.Reader) *AnswerReader {
	return &AnswerReader{source: source}
}

// Next returns the next image, or one of these errors:
//
//   - an [*Error]: the server's answer. The connection lives on unless the server closes it.
//   - a [*FieldError]: the server broke the protocol; close the connection (W1-RSP-008).
//   - io.EOF: the server closed the connection, between two frames.
//   - io.ErrUnexpectedEOF: the server is gone in the middle of a frame (W1-FRM-009).
//   - what the source says.
//
// All but the first are final: Next returns them ever after, without reading.
func (r *AnswerReader) Next() (*Response, error) {
	if r.ended != nil {
		return nil, r.ended
	}
	response, err := r.next()
	var answer *Error
	if err != nil && !errors.As(err, &answer) {
		r.ended = err
	}
	return response, err
}

func (r *AnswerReader) next() (*Response, error) {
	var head [responseHeadLen]byte
	h, err := readHeader(r.source, head[:HeaderLen])
	if fault := (*FieldError)(nil); errors.As(err, &fault) {
		fault.Rule = "W1-FRM-006"
	}
	if err != nil {
		return nil, err
	}
	if h.payloadLen > MaxResponsePayload { // before anything is reserved (W1-FRM-008)
		return nil, wrong("payload_len", h.payloadLen, "at most 16777248", "W1-FRM-007")
	}
	switch {
	case h.msgType == typeError: // of any version (W1-VER-006)
		return nil, r.nextError(h.payloadLen, head[:errorHeadLen])
	case h.msgType != typeResponse:
		return nil, wrong("msg_type", fmt.Sprintf("0x%04X", h.msgType), "0x0002 or 0x00FF", "W1-FRM-010")
	case h.version != Version:
		return nil, wrong("version", h.version, "1", "W1-FRM-010")
	default:
		return r.nextResponse(h.payloadLen, head[:])
	}
}

func (r *AnswerReader) nextResponse(payloadLen uint32, payload []byte) (*Response, error) {
	if payloadLen < responseHeadLen {
		return nil, wrong("payload_len", payloadLen, "at least 32", "W1-RSP-006")
	}
	if err := readRest(r.source, payload); err != nil {
		return nil, err
	}
	head, fault := parseResponseHead(payloadLen, payload)
	if fault != nil {
		return nil, fault
	}
	response := &Response{ResponseHead: head, Pixels: make([]byte, head.ImageLen())}
	if err := readRest(r.source, response.Pixels); err != nil {
		return nil, err
	}
	response.Trailing = payloadLen - responseHeadLen - uint32(head.ImageLen())
	if err := skip(r.source, response.Trailing); err != nil {
		return nil, err
	}
	return response, nil
}

// nextError never returns nil: the error that it reads is an error too.
func (r *AnswerReader) nextError(payloadLen uint32, payload []byte) error {
	if payloadLen < errorHeadLen {
		return wrong("payload_len", payloadLen, "at least 18", "W1-ERR-008")
	}
	if err := readRest(r.source, payload); err != nil {
		return err
	}
	answer, messageLen, fault := parseErrorHead(payloadLen, payload)
	if fault != nil {
		return fault
	}
	message := make([]byte, messageLen)
	if err := readRest(r.source, message); err != nil {
		return err
	}
	answer.Message = string(message)
	answer.Trailing = payloadLen - errorHeadLen - messageLen
	if err := skip(r.source, answer.Trailing); err != nil {
		return err
	}
	return answer
}

// A header is what is left to know of a frame's first 16 bytes once the magic was checked. The value of reserved means
// nothing (W1-HDR-005).
type header struct {
	version, msgType uint16
	payloadLen       uint32
}

// readHeader fills buf, which has HeaderLen bytes. A wrong magic is a *FieldError without a Rule, and is told at the
// first byte that differs: whoever speaks another protocol may never send 16 (W1-FRM-005).
func readHeader(source io.Reader, buf []byte) (header, error) {
	for n := 0; n < HeaderLen; {
		m, err := io.ReadAtLeast(source, buf[n:], 1)
		if err == io.EOF && n > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return header{}, err
		}
		n += m
		if begin := buf[:min(n, len(magic))]; !strings.HasPrefix(magic, string(begin)) {
			return header{}, &FieldError{Field: "magic", Value: fmt.Sprintf("% X", begin), Want: fmt.Sprintf("% X", magic)}
		}
	}
	return header{order.Uint16(buf[4:]), order.Uint16(buf[6:]), order.Uint32(buf[8:])}, nil
}

// readRest fills buf from within a frame, where the stream must not end.
func readRest(source io.Reader, buf []byte) error {
	_, err := io.ReadFull(source, buf)
	return withinFrame(err)
}

// skip drops n bytes of a frame without storing them.
func skip(source io.Reader, n uint32) error {
	_, err := io.CopyN(io.Discard, source, int64(n))
	return withinFrame(err)
}

func withinFrame(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
