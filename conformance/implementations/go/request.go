package weave

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ModelSD35 is model_id of Stable Diffusion 3.5, the only model of this version.
const ModelSD35 = 0

// The places of the three prompts in [Request.Prompts].
const (
	ClipL = iota
	ClipG
	T5
)

var promptNames = [3]string{ClipL: "clip_l", ClipG: "clip_g", T5: "t5"}

// A Prompt is a text for one of the model's encoders.
type Prompt struct {
	Text   string // 1 to 2048 bytes of UTF-8 without the byte 0 (W1-REQ-003)
	Offset uint32 // where it lay in prompt_data when it was read; not used when it is written
}

// SamePrompt gives all three encoders the same text, as clients of this version should (W1-REQ-004).
func SamePrompt(text string) [3]Prompt {
	return [3]Prompt{{Text: text}, {Text: text}, {Text: text}}
}

// A Request asks for one image of model [ModelSD35].
type Request struct {
	RequestID uint64
	Width     uint32  // pixels: 64 to 2048, a multiple of 64
	Height    uint32  // pixels: 64 to 2048, a multiple of 64
	Steps     uint32  // 1 to 100
	CFGScale  float32 // 0.0 to 20.0
	Seed      uint64  // 0 leaves the choice to the server (W1-REQ-009)
	Prompts   [3]Prompt
}

// AppendBinary appends the request's frame to b, its prompts one after the other. It refuses what a server would refuse,
// with a [*FieldError] (W1-REQ-001).
func (r *Request) AppendBinary(b []byte) ([]byte, error) {
	if _, fault := r.checkNumbers(); fault != nil {
		return b, fault
	}
	size := requestHeadLen
	for i, prompt := range r.Prompts {
		if fault := checkPromptLen(i, len(prompt.Text)); fault != nil {
			return b, fault
		}
		size += len(prompt.Text)
	}
	if fault := r.checkTexts(); fault != nil {
		return b, fault
	}

	b = appendHeader(b, typeRequest, size) // at most MaxRequestPayload by now (W1-FRM-001)
	b = order.AppendUint64(b, r.RequestID)
	b = order.AppendUint32(b, ModelSD35)
	b = order.AppendUint32(b, r.Width)
	b = order.AppendUint32(b, r.Height)
	b = order.AppendUint32(b, r.Steps)
	b = order.AppendUint32(b, math.Float32bits(withoutSign(r.CFGScale)))
	b = order.AppendUint64(b, r.Seed)
	offset := 0
	for _, prompt := range r.Prompts {
		b = order.AppendUint32(b, uint32(offset))
		b = order.AppendUint32(b, uint32(len(prompt.Text)))
		offset += len(prompt.Text)
	}
	for _, prompt := range r.Prompts {
		b = append(b, prompt.Text...)
	}
	return b, nil
}

// parseRequest makes the checks from step 3 on, in their order (W1-VAL-001). payload holds what is kept of a payload of
// h.payloadLen bytes: all of it, or the first MaxRequestPayload of them.
func parseRequest(h header, payload []byte) (*Request, *Error) {
	r := new(Request)
	if len(payload) >= 8 {
		r.RequestID = order.Uint64(payload) // even if all else is wrong (W1-ERR-001)
	}
	refuse := func(code Code, fault *FieldError) (*Request, *Error) {
		return nil, refusal(r.RequestID, code, fault)
	}

	if h.version != Version { // W1-VER-003
		return refuse(CodeUnsupportedVersion, wrong("version", h.version, "1", "W1-HDR-002"))
	}
	if h.msgType != typeRequest {
		return refuse(CodeUnsupportedType, wrong("msg_type", fmt.Sprintf("0x%04X", h.msgType), "0x0001", "W1-VAL-001"))
	}
	if len(payload) < commonHeadLen {
		return refuse(CodeMalformed, wrong("payload_len", h.payloadLen, "at least 12", "W1-VAL-001"))
	}
	if model := order.Uint32(payload[8:]); model != ModelSD35 {
		return refuse(CodeInvalidModelID, wrong("model_id", model, "0", "W1-REQ-001"))
	}
	if len(payload) < requestHeadLen {
		return refuse(CodeMalformed, wrong("payload_len", h.payloadLen, "at least 60", "W1-VAL-001"))
	}

	r.Width = order.Uint32(payload[12:])
	r.Height = order.Uint32(payload[16:])
	r.Steps = order.Uint32(payload[20:])
	r.CFGScale = math.Float32frombits(order.Uint32(payload[24:]))
	r.Seed = order.Uint64(payload[28:])
	if code, fault := r.checkNumbers(); fault != nil {
		return refuse(code, fault)
	}
	r.CFGScale = withoutSign(r.CFGScale)

	var lengths [3]uint32
	for i := range r.Prompts {
		r.Prompts[i].Offset = order.Uint32(payload[36+8*i:])
		lengths[i] = order.Uint32(payload[40+8*i:])
		if fault := checkPromptLen(i, lengths[i]); fault != nil {
			return refuse(CodeInvalidPrompt, fault)
		}
	}
	if h.payloadLen > MaxRequestPayload {
		return refuse(CodeInvalidPrompt, wrong("payload_len", h.payloadLen, "at most 6204", "W1-FRM-001"))
	}
	promptData := payload[requestHeadLen:]
	for i, length := range lengths { // the ranges may overlap, and need not cover everything (W1-REQ-005, W1-REQ-006)
		begin := uint64(r.Prompts[i].Offset)
		end := begin + uint64(length) // no overflow: both have 32 bits (W1-VAL-002)
		if end > uint64(len(promptData)) {
			return refuse(CodeInvalidPrompt, &FieldError{
				Field: promptNames[i] + "_offset",
				Value: fmt.Sprintf("%d with a length of %d", begin, length),
				Want:  fmt.Sprintf("within the %d bytes of prompt_data", len(promptData)),
				Rule:  "W1-REQ-002",
			})
		}
		r.Prompts[i].Text = string(promptData[begin:end])
	}
	if fault := r.checkTexts(); fault != nil {
		return refuse(CodeInvalidPrompt, fault)
	}
	return r, nil
}

// checkNumbers makes the steps 8 to 10.
func (r *Request) checkNumbers() (Code, *FieldError) {
	if fault := checkSide("width", r.Width, "W1-REQ-001"); fault != nil {
		return CodeInvalidDimensions, fault
	}
	if fault := checkSide("height", r.Height, "W1-REQ-001"); fault != nil {
		return CodeInvalidDimensions, fault
	}
	if r.Steps < 1 || r.Steps > MaxSteps {
		return CodeInvalidSteps, wrong("steps", r.Steps, "1 to 100", "W1-REQ-001")
	}
	if !(r.CFGScale >= 0 && r.CFGScale <= MaxCFGScale) { // NaN compares false with everything (W1-REQ-007)
		return CodeInvalidCFG, wrong("cfg_scale", r.CFGScale, "0.0 to 20.0", "W1-REQ-001")
	}
	return 0, nil
}

// checkPromptLen makes step 11.
func checkPromptLen[T int | uint32](i int, length T) *FieldError {
	if length < 1 || length > MaxPromptLen {
		return wrong(promptNames[i]+"_length", length, "1 to 2048", "W1-REQ-001")
	}
	return nil
}

// checkTexts makes the steps 14 and 15: that no text has a byte 0 matters only once all of them are UTF-8 (W1-REQ-003).
func (r *Request) checkTexts() *FieldError {
	for i, prompt := range r.Prompts {
		if !utf8.ValidString(prompt.Text) {
			return &FieldError{promptNames[i], "not UTF-8", "UTF-8", "W1-REQ-003"}
		}
	}
	for i, prompt := range r.Prompts {
		if at := strings.IndexByte(prompt.Text, 0); at >= 0 {
			return &FieldError{promptNames[i], "text with a byte 0 at " + strconv.Itoa(at), "without one", "W1-REQ-003"}
		}
	}
	return nil
}

// withoutSign makes 0.0 of -0.0 (W1-REQ-007).
func withoutSign(scale float32) float32 {
	if scale == 0 {
		return 0
	}
	return scale
}
