package weave

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A ResponseHead is what precedes the pixels of an image.
type ResponseHead struct {
	RequestID      uint64
	GenerationTime time.Duration // without the time that the request waited; sent in whole milliseconds
	Width          uint32        // pixels: 64 to 2048, a multiple of 64
	Height         uint32        // pixels: 64 to 2048, a multiple of 64
	Channels       uint32        // bytes of a pixel: 3 for RGB, 4 for RGBA
}

// A Response is an image: rows from the top, pixels from the left, without padding.
type Response struct {
	ResponseHead
	Pixels   []byte
	Trailing uint32 // how many bytes followed the pixels; a later version's, and skipped (W1-RSP-007)

	// Request is what a [Client] has asked for, with the seed that was used: the same makes the image again. Readers leave
	// it nil.
	Request *Request
}

// AppendBinary appends the 48 bytes that come before the pixels; ImageLen bytes of pixels have to follow. It refuses
// what a client would refuse, with a [*FieldError].
func (h *ResponseHead) AppendBinary(b []byte) ([]byte, error) {
	if fault := h.check(); fault != nil {
		return b, fault
	}
	// What is too long becomes the largest number (W1-RSP-003).
	milliseconds := uint32(min(max(h.GenerationTime.Milliseconds(), 0), math.MaxUint32))
	b = appendHeader(b, typeResponse, responseHeadLen+h.ImageLen())
	b = order.AppendUint64(b, h.RequestID)
	b = order.AppendUint32(b, 200) // W1-RSP-004
	b = order.AppendUint32(b, milliseconds)
	b = order.AppendUint32(b, h.Width)
	b = order.AppendUint32(b, h.Height)
	b = order.AppendUint32(b, h.Channels)
	return order.AppendUint32(b, uint32(h.ImageLen())), nil
}

// ImageLen is how many bytes the pixels have.
func (h *ResponseHead) ImageLen() int {
	return int(h.Width) * int(h.Height) * int(h.Channels)
}

// parseResponseHead checks all that a response says about itself, before a byte of its pixels is stored
// (W1-RSP-005, W1-RSP-006).
func parseResponseHead(payloadLen uint32, payload []byte) (ResponseHead, *FieldError) {
	h := ResponseHead{
		RequestID:      order.Uint64(payload),
		GenerationTime: time.Duration(order.Uint32(payload[12:])) * time.Millisecond,
		Width:          order.Uint32(payload[16:]),
		Height:         order.Uint32(payload[20:]),
		Channels:       order.Uint32(payload[24:]),
	}
	if status := order.Uint32(payload[8:]); status != 200 {
		return h, wrong("status", status, "200", "W1-RSP-005")
	}
	if fault := h.check(); fault != nil {
		return h, fault
	}
	imageLen := h.ImageLen() // no overflow: the factors were checked
	if said := order.Uint32(payload[28:]); said != uint32(imageLen) {
		return h, wrong("image_data_len", said, fmt.Sprintf("%d·%d·%d", h.Width, h.Height, h.Channels), "W1-RSP-005")
	}
	if need := responseHeadLen + imageLen; payloadLen < uint32(need) {
		return h, wrong("payload_len", payloadLen, fmt.Sprintf("at least %d", need), "W1-RSP-006")
	}
	return h, nil
}

func (h *ResponseHead) check() *FieldError {
	if fault := checkSide("image_width", h.Width, "W1-RSP-005"); fault != nil {
		return fault
	}
	if fault := checkSide("image_height", h.Height, "W1-RSP-005"); fault != nil {
		return fault
	}
	if h.Channels != 3 && h.Channels != 4 {
		return wrong("channels", h.Channels, "3 or 4", "W1-RSP-005")
	}
	return nil
}

// A Code says why there is no image. Codes that this version doesn't know are legal to receive (W1-ERR-006).
type Code uint32

// The codes of the protocol's section 6.
const (
	CodeInvalidMagic       Code = 1
	CodeUnsupportedVersion Code = 2
	CodeInvalidModelID     Code = 3
	CodeInvalidPrompt      Code = 4
	CodeInvalidDimensions  Code = 5
	CodeInvalidSteps       Code = 6
	CodeInvalidCFG         Code = 7
	CodeOutOfMemory        Code = 8
	CodeGPUError           Code = 9
	CodeTimeout            Code = 10
	CodeMalformed          Code = 20
	CodeTooLarge           Code = 21
	CodeUnsupportedType    Code = 22
	CodeBusy               Code = 23
	CodeShuttingDown       Code = 24
	CodeInternal           Code = 99
)

var codes = map[Code]struct {
	name   string
	status uint32
}{
	CodeInvalidMagic:       {"INVALID_MAGIC", 400},
	CodeUnsupportedVersion: {"UNSUPPORTED_VERSION", 400},
	CodeInvalidModelID:     {"INVALID_MODEL_ID", 400},
	CodeInvalidPrompt:      {"INVALID_PROMPT", 400},
	CodeInvalidDimensions:  {"INVALID_DIMENSIONS", 400},
	CodeInvalidSteps:       {"INVALID_STEPS", 400},
	CodeInvalidCFG:         {"INVALID_CFG", 400},
	CodeOutOfMemory:        {"OUT_OF_MEMORY", 500},
	CodeGPUError:           {"GPU_ERROR", 500},
	CodeTimeout:            {"TIMEOUT", 500},
	CodeMalformed:          {"MALFORMED", 400},
	CodeTooLarge:           {"TOO_LARGE", 400},
	CodeUnsupportedType:    {"UNSUPPORTED_TYPE", 400},
	CodeBusy:               {"BUSY", 500},
	CodeShuttingDown:       {"SHUTTING_DOWN", 500},
	CodeInternal:           {"INTERNAL", 500},
}

// String is the code's name, or its number if this version doesn't know it.
func (c Code) String() string {
	if known, ok := codes[c]; ok {
		return known.name
	}
	return "code " + strconv.FormatUint(uint64(c), 10)
}

// Status is the status that belongs to the code (W1-ERR-002), or 0 if this version doesn't know it.
func (c Code) Status() uint32 {
	return codes[c].status
}

// Closes tells whether a server closes the connection after an error with this code: it can't know then where the next
// frame begins (W1-CON-005).
func (c Code) Closes() bool {
	return c == CodeInvalidMagic || c == CodeTooLarge
}

// An Error is an answer without an image. It is a Go error as well: a [RequestReader] returns the one to be sent, an
// [AnswerReader] the one that came.
type Error struct {
	RequestID uint64 // 0 if the server could not read it
	Status    uint32 // 400 or 500; not used when it is written, since Code decides
	Code      Code
	Message   string // as it came: it may be anything (W1-ERR-010)
	Trailing  uint32 // how many bytes followed the message; a later version's, and skipped (W1-ERR-009)
}

// Error describes the answer in one line that is fit for a terminal.
func (e *Error) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Shown())
}

// Shown is the message fit for a terminal: what is not UTF-8 is replaced by U+FFFD, and what would not be visible, such
// as a control character, stands there as an escape of Go (W1-ERR-010).
func (e *Error) Shown() string {
	var shown strings.Builder
	for _, r := range e.Message { // what is not UTF-8 comes as U+FFFD
		if strconv.IsPrint(r) {
			shown.WriteRune(r)
		} else {
			quoted := strconv.QuoteRune(r)
			shown.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return shown.String()
}

// AppendBinary appends the error's frame to b. It writes Code's status (W1-ERR-002) and cuts a message after 255 bytes,
// between characters (W1-ERR-003). A code that this version doesn't know is refused with a [*FieldError].
func (e *Error) AppendBinary(b []byte) ([]byte, error) {
	status := e.Code.Status()
	if status == 0 {
		return b, wrong("error_code", uint32(e.Code), "one of section 6", "W1-ERR-002")
	}
	message := strings.ToValidUTF8(e.Message, "\uFFFD")
	if end := MaxErrorMessage; len(message) > end {
		for !utf8.RuneStart(message[end]) {
			end--
		}
		message = message[:end]
	}
	b = appendHeader(b, typeError, errorHeadLen+len(message))
	b = order.AppendUint64(b, e.RequestID)
	b = order.AppendUint32(b, status)
	b = order.AppendUint32(b, uint32(e.Code))
	b = order.AppendUint16(b, uint16(len(message)))
	return append(b, message...), nil
}

// parseErrorHead checks the fixed fields of an error, and returns how long its message is besides.
func parseErrorHead(payloadLen uint32, payload []byte) (*Error, uint32, *FieldError) {
	e := &Error{
		RequestID: order.Uint64(payload),
		Status:    order.Uint32(payload[8:]),
		Code:      Code(order.Uint32(payload[12:])),
	}
	messageLen := uint32(order.Uint16(payload[16:]))
	if e.Status != 400 && e.Status != 500 {
		return nil, 0, wrong("status", e.Status, "400 or 500", "W1-ERR-007")
	}
	if need := errorHeadLen + messageLen; payloadLen < need {
		return nil, 0, wrong("payload_len", payloadLen, fmt.Sprintf("at least %d", need), "W1-ERR-008")
	}
	return e, messageLen, nil
}

// refusal is the error that answers a bad request: its message is the field, its value and what is allowed (W1-ERR-004).
func refusal(id uint64, code Code, fault *FieldError) *Error {
	return &Error{RequestID: id, Status: code.Status(), Code: code, Message: fault.Error()}
}
