package weave;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;

/** An error, as a server sends it. The status follows from the code. */
public record ErrorAnswer(long requestId, ErrorCode code, String message) implements ServerReader.Frame {
    /** The frame. A message of more than 255 bytes is cut between two characters. */
    public ByteBuffer encode() {
        byte[] text = message.getBytes(StandardCharsets.UTF_8);
        int length = Math.min(text.length, Protocol.MAX_ERROR_MSG);
        while (length < text.length && (text[length] & 0xC0) == 0x80) { // within a character
            length--;
        }
        int payloadLen = Protocol.ERROR_HEAD_SIZE + length;
        return Protocol.frame(Protocol.HEADER_SIZE + payloadLen, Protocol.TYPE_ERROR, payloadLen)
                .putLong(requestId).putInt(code.status).putInt(code.number)
                .putShort((short) length).put(text, 0, length).flip();
    }
}
