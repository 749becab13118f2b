package weave;

import static weave.Protocol.u32;

import java.nio.ByteBuffer;

/** Reads what a server sends. */
public final class ClientReader extends FrameReader<ClientReader.Answer> {
    public sealed interface Answer permits Response, ErrorMessage {}

    /** Looks at the head of a response before memory is reserved for its pixels. */
    public interface HeadCheck {
        void check(Response.Head head) throws Violation;
    }

    private final HeadCheck headCheck;
    /** The fields before the pixels or the message. */
    private final ByteBuffer fixed = ByteBuffer.allocate(Protocol.RESPONSE_HEAD_SIZE);
    /** The pixels or the message; null until the fields before them have been checked. */
    private ByteBuffer body;
    private Response.Head head;

    /** {@code headCheck} refuses images that were not asked for. */
    public ClientReader(HeadCheck headCheck) {
        this.headCheck = headCheck;
    }

    /** After a violation nothing more is read. */
    @Override
    public Answer next(ByteBuffer in) throws Violation {
        if (closed) {
            return null;
        }
        try {
            return read(in);
        } catch (Violation e) {
            closed = true;
            throw e;
        }
    }

    private Answer read(ByteBuffer in) throws Violation {
        if (header.hasRemaining()) {
            if (!takeHeader(in)) {
                return null;
            }
            checkHeader();
            fixed.clear().limit(isError() ? Protocol.ERROR_HEAD_SIZE : Protocol.RESPONSE_HEAD_SIZE);
            body = null;
        }
        if (!take(in, fixed)) {
            return null;
        }
        if (body == null) {
            body = ByteBuffer.allocate(isError() ? checkError() : checkResponse());
        }
        if (!take(in, body) || !skip(in)) {
            return null;
        }
        header.clear();
        long trailing = payloadLen() - fixed.limit() - body.limit();
        return isError()
                ? new ErrorMessage(fixed.getLong(0), u32(fixed, 8), u32(fixed, 12), body.array(), trailing)
                : new Response(head, body.array(), trailing);
    }

    private boolean isError() {
        return type() == Protocol.TYPE_ERROR;
    }

    private void checkHeader() throws Violation {
        if (!magicIsRight()) {
            throw new Violation("W1-FRM-006", "a frame does not begin with WEVE");
        }
        if (payloadLen() > Protocol.MAX_RESPONSE_PAYLOAD) {
            throw new Violation("W1-FRM-007", "payload_len is " + payloadLen());
        }
        if (!isError() && (type() != Protocol.TYPE_RESPONSE || version() != Protocol.VERSION)) {
            throw new Violation("W1-FRM-010", "a frame is of type " + type() + " and version " + version());
        }
        if (payloadLen() < (isError() ? Protocol.ERROR_HEAD_SIZE : Protocol.RESPONSE_HEAD_SIZE)) {
            throw new Violation(isError() ? "W1-ERR-008" : "W1-RSP-006", "payload_len is " + payloadLen());
        }
    }

    /** The length of the pixels. */
    private int checkResponse() throws Violation {
        head = Response.Head.decode(fixed);
        if (left < head.imageDataLen()) {
            throw new Violation("W1-RSP-006", "the payload ends before image_data does");
        }
        headCheck.check(head);
        return head.imageDataLen();
    }

    /** The length of the message. */
    private int checkError() throws Violation {
        if (u32(fixed, 8) != 400 && u32(fixed, 8) != 500) {
            throw new Violation("W1-ERR-007", "status of an error is " + u32(fixed, 8));
        }
        int length = Short.toUnsignedInt(fixed.getShort(16));
        if (left < length) {
            throw new Violation("W1-ERR-008", "the payload ends before error_msg does");
        }
        return length;
    }
}
