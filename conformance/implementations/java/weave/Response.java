package weave;

import static weave.Protocol.u32;

import java.nio.ByteBuffer;

/** An image, as a client receives it. {@code trailing} counts the bytes after it, which this version ignores. */
public record Response(Head head, byte[] pixels, long trailing) implements ClientReader.Answer {
    static final int STATUS = 200;

    /** All but the pixels. status and image_data_len are not stored: the other fields tell them. */
    public record Head(long requestId, long generationTimeMs, int width, int height, int channels) {
        public int imageDataLen() {
            return width * height * channels; // at most 2^24, since the three are checked
        }

        /** The 48 bytes before the pixels. */
        public ByteBuffer encode() throws InvalidField {
            check("generation_time_ms", generationTimeMs, generationTimeMs >= 0 && generationTimeMs <= 0xFFFF_FFFFL);
            check("image_width", width, Protocol.isSide(width));
            check("image_height", height, Protocol.isSide(height));
            check("channels", channels, isChannels(channels));
            return Protocol.frame(Protocol.HEADER_SIZE + Protocol.RESPONSE_HEAD_SIZE, Protocol.TYPE_RESPONSE,
                            Protocol.RESPONSE_HEAD_SIZE + imageDataLen())
                    .putLong(requestId).putInt(STATUS).putInt((int) generationTimeMs)
                    .putInt(width).putInt(height).putInt(channels).putInt(imageDataLen()).flip();
        }

        private static void check(String field, long value, boolean allowed) throws InvalidField {
            if (!allowed) {
                throw new InvalidField(field, ErrorCode.INTERNAL, field + " is " + value);
            }
        }

        static Head decode(ByteBuffer payload) throws Violation {
            expect("status", payload, 8, u32(payload, 8) == STATUS);
            long width = expect("image_width", payload, 16, Protocol.isSide(u32(payload, 16)));
            long height = expect("image_height", payload, 20, Protocol.isSide(u32(payload, 20)));
            long channels = expect("channels", payload, 24, isChannels(u32(payload, 24)));
            expect("image_data_len", payload, 28, u32(payload, 28) == width * height * channels);
            return new Head(payload.getLong(0), u32(payload, 12), (int) width, (int) height, (int) channels);
        }

        private static long expect(String field, ByteBuffer payload, int offset, boolean allowed) throws Violation {
            if (!allowed) {
                throw new Violation("W1-RSP-005", field + " of a response is " + u32(payload, offset));
            }
            return u32(payload, offset);
        }

        private static boolean isChannels(long channels) {
            return channels == 3 || channels == 4;
        }
    }
}
