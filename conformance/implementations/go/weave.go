// Package weave reads and writes Weave, version 1: a binary protocol for local image generation. It is written from
// spec/weave-v1.md, whose requirements are cited by their ids (W1-...) where the code fulfils them.
//
// A server reads with a [RequestReader] and writes a [ResponseHead] and pixels, or an [Error]. A client writes a
// [Request] and reads with an [AnswerReader]. Messages append themselves to a byte slice (encoding.BinaryAppender);
// what a message breaks is told by a [FieldError].
package weave

import (
	"encoding/binary"
	"fmt"
)

// Version is the version of the protocol that this package speaks.
const Version = 1

// Limits, in bytes, of the protocol's section 3.2. A payload is what follows the header of a frame.
const (
	HeaderLen          = 16
	MaxRequestPayload  = requestHeadLen + MaxPromptData
	MaxSkippedPayload  = 10 << 20
	MaxResponsePayload = responseHeadLen + MaxSide*MaxSide*4
	MaxErrorMessage    = 255
	MaxPromptData      = 3 * MaxPromptLen
)

// Ranges of a request's fields. Sides are in pixels, prompts in bytes.
const (
	MinSide      = 64
	MaxSide      = 2048
	SideStep     = 64
	MaxSteps     = 100
	MaxCFGScale  = 20.0
	MaxPromptLen = 2048
)

const (
	magic = "WEVE"

	typeRequest  = 0x0001
	typeResponse = 0x0002
	typeError    = 0x00FF

	commonHeadLen   = 12 // request_id and model_id, which the requests of all models begin with
	requestHeadLen  = 60 // a request up to t5_length
	responseHeadLen = 32 // a response up to image_data_len
	errorHeadLen    = 18 // an error up to error_msg_len
)

// Everything is big-endian and unpadded (W1-TRN-005, W1-TRN-006).
var order = binary.BigEndian

// A FieldError says which field of a message breaks which rule. It never holds any part of a prompt (W1-ERR-005).
type FieldError struct {
	Field string // the field's name in the protocol's text
	Value string // what it is
	Want  string // what it must be
	Rule  string // the requirement's id, such as "W1-REQ-001"
}

func (e *FieldError) Error() string {
	return fmt.Sprintf("%s is %s, must be %s (%s)", e.Field, e.Value, e.Want, e.Rule)
}

// wrong makes a FieldError about a number.
func wrong(field string, value any, want, rule string) *FieldError {
	return &FieldError{Field: field, Value: fmt.Sprint(value), Want: want, Rule: rule}
}

// appendHeader begins a frame (W1-HDR-001 to W1-HDR-004).
func appendHeader(b []byte, msgType uint16, payloadLen int) []byte {
	b = append(b, magic...)
	b = order.AppendUint16(b, Version)
	b = order.AppendUint16(b, msgType)
	b = order.AppendUint32(b, uint32(payloadLen))
	return order.AppendUint32(b, 0)
}

// checkSide is for the sides of requests and responses, which have the same range.
func checkSide(field string, side uint32, rule string) *FieldError {
	if side < MinSide || side > MaxSide || side%SideStep != 0 {
		return wrong(field, side, "64 to 2048 and a multiple of 64", rule)
	}
	return nil
}
