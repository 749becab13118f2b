package weave;

import java.nio.ByteBuffer;

/** The numbers of Weave, version 1, and the header that begins every frame. */
final class Protocol {
    static final int MAGIC = 0x57455645; // "WEVE"
    static final int VERSION = 1;
    static final int TYPE_REQUEST = 0x0001;
    static final int TYPE_RESPONSE = 0x0002;
    static final int TYPE_ERROR = 0x00FF;

    static final int HEADER_SIZE = 16;
    static final int REQUEST_HEAD_SIZE = 60;
    static final int RESPONSE_HEAD_SIZE = 32;
    static final int ERROR_HEAD_SIZE = 18;

    static final int MAX_PROMPT = 2048;
    static final int MAX_PROMPT_DATA = 3 * MAX_PROMPT;
    static final int MAX_REQUEST_PAYLOAD = REQUEST_HEAD_SIZE + MAX_PROMPT_DATA;
    static final int MAX_SKIPPED_PAYLOAD = 10_485_760;
    static final int MAX_RESPONSE_PAYLOAD = RESPONSE_HEAD_SIZE + 2048 * 2048 * 4;
    static final int MAX_ERROR_MSG = 255;

    private Protocol() {}

    /** A buffer of {@code size} bytes that begins with a header for {@code payloadLen}; the payload goes in next. */
    static ByteBuffer frame(int size, int type, int payloadLen) {
        return ByteBuffer.allocate(size) // big-endian, as the protocol is
                .putInt(MAGIC).putShort((short) VERSION).putShort((short) type).putInt(payloadLen).putInt(0);
    }

    static long u32(ByteBuffer buffer, int offset) {
        return Integer.toUnsignedLong(buffer.getInt(offset));
    }

    static boolean isSide(long pixels) {
        return pixels >= 64 && pixels <= 2048 && pixels % 64 == 0;
    }
}
