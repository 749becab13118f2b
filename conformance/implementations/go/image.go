package weave

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"image/png"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// release is what files say made them.
const release = "0.1.0"

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

// PNG is the image as a file that says how it was made, if Request is there: as `weave generate` writes it, so that
// `weave verify` makes it again.
func (r *Response) PNG() ([]byte, error) {
	var encoded bytes.Buffer
	if err := png.Encode(&encoded, r.Image()); err != nil {
		return nil, err
	}
	const head = 8 + 12 + 13 // the signature and IHDR, which comes first
	file := append([]byte(nil), encoded.Bytes()[:head]...)
	if r.Request != nil {
		parameters, recipe, err := r.Request.texts()
		if err != nil {
			return nil, err
		}
		file = appendText(file, "parameters", parameters)
		file = appendText(file, "Weave", recipe)
	}
	return append(file, encoded.Bytes()[head:]...), nil
}

// texts are the form that programs for Stable Diffusion have agreed on, and all that it takes as JSON.
func (r *Request) texts() (parameters, recipe string, err error) {
	prompt := r.Prompts[ClipL].Text
	scale := strconv.FormatFloat(float64(r.CFGScale), 'f', -1, 32)
	parameters = fmt.Sprintf("%s\nSteps: %d, Sampler: unknown, CFG scale: %s, Seed: %d, Size: %dx%d, Version: Weave %s",
		prompt, r.Steps, scale, r.Seed, r.Width, r.Height, release)
	if !strings.Contains(scale, ".") {
		scale += ".0"
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err = encoder.Encode(struct {
		Protocol uint16      `json:"protocol"`
		ModelID  uint32      `json:"model_id"`
		Prompt   string      `json:"prompt"`
		Width    uint32      `json:"width"`
		Height   uint32      `json:"height"`
		Steps    uint32      `json:"steps"`
		CFGScale json.Number `json:"cfg_scale"`
		Seed     uint64      `json:"seed"`
		Provider string      `json:"provider"`
	}{Version, ModelSD35, prompt, r.Width, r.Height, r.Steps, json.Number(scale), r.Seed, "local"})
	return parameters, strings.TrimSuffix(text.String(), "\n"), err
}

// appendText appends a chunk of a PNG file: tEXt, which is read everywhere but holds Latin-1 only, or else iTXt.
func appendText(file []byte, keyword, text string) []byte {
	kind, data := "tEXt", append([]byte(keyword), 0)
	for _, r := range text {
		if r > 0xFF {
			kind = "iTXt"
		}
	}
	if kind == "iTXt" {
		data = append(append(data, 0, 0, 0, 0), text...)
	} else {
		for _, r := range text {
			data = append(data, byte(r))
		}
	}
	file = binary.BigEndian.AppendUint32(file, uint32(len(data)))
	begin := len(file)
	file = append(append(file, kind...), data...)
	return binary.BigEndian.AppendUint32(file, crc32.ChecksumIEEE(file[begin:]))
}

// Save writes the file that [Response.PNG] makes, over one that is there: complete or not at all.
func (r *Response) Save(path string) error {
	data, err := r.PNG()
	if err != nil {
		return err
	}
	fail := func(err error) error {
		var of *fs.PathError
		if errors.As(err, &of) { // it names a file that nobody has heard of
			err = of.Err
		}
		return &fs.PathError{Op: "save", Path: path, Err: err}
	}
	target := path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		target = real // a link's target is what gets replaced
	}
	there, err := os.Stat(target)
	if err == nil && !there.Mode().IsRegular() {
		return fail(errors.New("it is there and is no regular file"))
	}
	part := filepath.Join(filepath.Dir(target), fmt.Sprintf(".weave.%016x.part", rand.Uint64()))
	file, openErr := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if openErr != nil {
		return fail(openErr)
	}
	_, writeErr := file.Write(data)
	if err == nil {
		writeErr = errors.Join(writeErr, file.Chmod(there.Mode().Perm()))
	}
	if writeErr = errors.Join(writeErr, file.Close()); writeErr == nil {
		writeErr = os.Rename(part, target)
	}
	if writeErr != nil {
		os.Remove(part)
		return fail(writeErr)
	}
	return nil
}
