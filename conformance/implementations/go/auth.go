package weave

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// auth is what both sides begin with over TCP where the server has a token: weave-daemon/TCP.md.
const auth = "weave-auth 1 "

// proof is what only those can compute who know the token. side says whose it is, so that the one can't be passed off as
// the other.
func proof(token []byte, side string, nonces ...[]byte) []byte {
	mac := hmac.New(sha256.New, token)
	io.WriteString(mac, auth+side)
	for _, nonce := range nonces {
		mac.Write(nonce)
	}
	return mac.Sum(nil)
}

// prove has the server prove that it knows the token, and then proves it in turn. The token is never sent.
func prove(conn io.ReadWriter, token []byte) error {
	nonce := make([]byte, 32)
	rand.Read(nonce) // never fails
	if _, err := fmt.Fprintf(conn, "%s%x\n", auth, nonce); err != nil {
		return err
	}
	line := make([]byte, len(auth)+64+1+64+1)
	for have := 0; have < len(line); {
		n, err := conn.Read(line[have:])
		have += n
		if begins := line[:min(have, len(auth))]; bytes.HasPrefix(line[:have], []byte(magic)) {
			_, err := NewAnswerReader(io.MultiReader(bytes.NewReader(line[:have]), conn)).Next()
			if err == nil {
				err = errors.New("an image")
			}
			return fmt.Errorf("the server doesn't answer %sas weaved does: %w", auth, err)
		} else if !bytes.HasPrefix([]byte(auth), begins) && !bytes.HasPrefix([]byte(magic), begins) {
			return fmt.Errorf("the server doesn't answer %sas weaved does", auth)
		}
		if err != nil && have < len(line) {
			return fmt.Errorf("no answer to %s: %w", auth, err) // an older server hangs up
		}
	}
	words := bytes.Split(bytes.TrimSuffix(line[len(auth):], []byte("\n")), []byte(" "))
	if len(words) != 2 || !bytes.Equal(line, fmt.Appendf(nil, "%s%x %x\n", auth, unhex(words[0]), unhex(words[1]))) {
		return fmt.Errorf("the server doesn't answer %sas weaved does", auth)
	}
	theirs := unhex(words[0])
	if !hmac.Equal(unhex(words[1]), proof(token, "server", nonce, theirs)) {
		return errors.New("the server doesn't know the token")
	}
	_, err := fmt.Fprintf(conn, "%x\n", proof(token, "client", nonce, theirs))
	return err
}

// unhex is what hexadecimal digits stand for, as far as they are some.
func unhex(digits []byte) []byte {
	raw, _ := hex.DecodeString(string(digits))
	return raw
}
