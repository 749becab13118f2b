package main

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

const (
	badMagic = `{"hex":"58"}`
	// A request for 64x64 pixels whose three ranges are the same byte "x", without its last byte.
	requestButOne = `{"hex":"57455645000100010000003d00000000` + `0000000000000007` + `00000000` + `00000040` + `00000040` +
		`00000001` + `80000000` + `0000000000000009` + `0000000000000001` + `0000000000000001` + `0000000000000001"}`
	last    = `{"hex":"78"}`
	anError = `{"hex":"57455645000100ff0000001500000000` + `0000000000000007` + `000001f4` + `00000017` + `0002` + `1b5b` + `00"}`
	image   = `{"hex":"57455645000100020000302000000000` + `0000000000000007` + `000000c8` + `00000005` + `00000040` +
		`00000040` + `00000003` + `00003000"},{"hex":"ff00","times":6144}`
)

func TestQuestionsAreAnswered(t *testing.T) {
	for _, test := range []struct{ name, question, answer string }{
		{
			"nothing", `{"read":"server","cut":1,"bytes":[]}`,
			`{"end":"between-frames","frames":[]}`,
		}, {
			"a request", `{"read":"server","cut":7,"bytes":[` + requestButOne + `,` + last + `],"new":1}`,
			`{"end":"between-frames","frames":[{"request":{"cfg_scale":"00000000",` +
				`"clip_g":{"hex":"78","length":1,"offset":0},"clip_l":{"hex":"78","length":1,"offset":0},` +
				`"height":64,"model_id":0,"request_id":"7","seed":"9","steps":1,` +
				`"t5":{"hex":"78","length":1,"offset":0},"width":64}}]}`,
		}, {
			"a cut request", `{"read":"server","cut":7,"bytes":[` + requestButOne + `]}`,
			`{"end":"inside-a-frame","frames":[]}`,
		}, {
			"a lost stream", `{"read":"server","cut":7,"bytes":[` + badMagic + `,` + requestButOne + `]}`,
			`{"end":"closed","frames":[{"answer":{"field":"magic","hex":"57455645000100ff0000004800000000000000000000000000000190000000010036` +
				hex.EncodeToString([]byte("magic is 58 57 45 56, must be 57 45 56 45 (W1-FRM-004)")) + `"}}]}`,
		}, {
			"a lost stream, byte by byte", `{"read":"server","cut":1,"bytes":[` + badMagic + `,` + requestButOne + `]}`,
			`{"end":"closed","frames":[{"answer":{"field":"magic","hex":"57455645000100ff0000003f0000000000000000000000000000019000000001002d` +
				hex.EncodeToString([]byte("magic is 58, must be 57 45 56 45 (W1-FRM-004)")) + `"}}]}`,
		}, {
			"an image", `{"read":"client","cut":4093,"bytes":[` + image + `]}`,
			`{"end":"between-frames","frames":[{"response":{"channels":3,"crc32":"21246556","generation_time_ms":5,` +
				`"image_data_len":12288,"image_height":64,"image_width":64,"request_id":"7","status":200,"trailing":0}}]}`,
		}, {
			"an error", `{"read":"client","cut":1,"bytes":[` + anError + `]}`,
			`{"end":"between-frames","frames":[{"error":{"error_code":23,"hex":"1b5b","request_id":"7",` +
				`"shown":"5c7831625b","status":500,"trailing":1}}]}`,
		}, {
			"a broken server", `{"read":"client","cut":1,"bytes":[` + anError + `,` + badMagic + `]}`,
			`{"end":"closed","frames":[{"error":{"error_code":23,"hex":"1b5b","request_id":"7",` +
				`"shown":"5c7831625b","status":500,"trailing":1}},{"close":{"because":"W1-FRM-006"}}]}`,
		}, {
			"a request to write", `{"write":"request","request_id":"18446744073709551615","width":64,"height":64,"steps":1,` +
				`"cfg_scale":"3F800000","seed":"2","clip_l":"61","clip_g":"62","t5":"63"}`,
			`{"hex":"57455645000100010000003f00000000ffffffffffffffff000000000000004000000040000000013f800000` +
				`0000000000000002000000000000000100000001000000010000000200000001616263"}`,
		}, {
			"a head to write", `{"write":"response-head","request_id":"7","generation_time_ms":5,"image_width":64,` +
				`"image_height":64,"channels":3}`,
			`{"hex":"57455645000100020000302000000000` + `0000000000000007` + `000000c8` + `00000005` + `00000040` +
				`00000040` + `00000003` + `00003000"}`,
		}, {
			"an error to write", `{"write":"error","request_id":"7","error_code":23,"error_msg":"6869"}`,
			`{"hex":"57455645000100ff0000001400000000` + `0000000000000007` + `000001f4` + `00000017` + `0002` + `6869"}`,
		},
		{"a refusal", `{"write":"response-head","request_id":"7","image_width":64,"image_height":63}`, `{"refused":"image_height"}`},
		{"a large number", `{"write":"response-head","request_id":"7","image_width":4294967296}`, `{"refused":"image_width"}`},
		{"a negative one", `{"write":"error","request_id":"7","error_code":-1}`, `{"refused":"error_code"}`},
		{"another question", `{"write":"sonnet"}`, `{"unsupported":"read \"\", write \"sonnet\""}`},
	} {
		var answers bytes.Buffer
		if err := answerAll(strings.NewReader(test.question+"\n"), &answers); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if got := answers.String(); got != test.answer+"\n" {
			t.Errorf("%s:\n got      %s expected %s", test.name, got, test.answer)
		}
	}
}

func TestWhatIsNoQuestionEndsTheAdapter(t *testing.T) {
	for _, line := range []string{`}`, `[]`, `{"read":"server","bytes":[]}`, `{"read":"server","cut":1,"bytes":[{"hex":"5"}]}`} {
		var answers bytes.Buffer
		if err := answerAll(strings.NewReader(line), &answers); err == nil {
			t.Errorf("%s is answered with %s", line, &answers)
		}
	}
}
