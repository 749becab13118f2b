package weave;

import static weave.ErrorCode.INVALID_CFG;
import static weave.ErrorCode.INVALID_DIMENSIONS;
import static weave.ErrorCode.INVALID_MODEL_ID;
import static weave.ErrorCode.INVALID_PROMPT;
import static weave.ErrorCode.INVALID_STEPS;
import static weave.ErrorCode.MALFORMED;
import static weave.Protocol.u32;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.List;

/** A request for an image. requestId and seed are unsigned numbers of 64 bits. */
public record Request(long requestId, int width, int height, int steps, float cfgScale, long seed, List<Prompt> prompts)
        implements ServerReader.Frame {
    /** The prompts' names, in their order: of the fields, of {@link #prompts}, and of the checks. */
    public static final List<String> PROMPTS = List.of("clip_l", "clip_g", "t5");

    /** One prompt: its UTF-8 text, and where in prompt_data it begins. */
    public record Prompt(int offset, byte[] text) {}

    /** A request whose prompts stand one after the other. */
    public static Request of(long id, int width, int height, int steps, float cfgScale, long seed,
            byte[] clipL, byte[] clipG, byte[] t5) {
        return new Request(id, width, height, steps, cfgScale, seed, List.of(new Prompt(0, clipL),
                new Prompt(clipL.length, clipG), new Prompt(clipL.length + clipG.length, t5)));
    }

    /** The frame, with the prompts one after the other wherever they stood before. */
    public ByteBuffer encode() throws InvalidField {
        checkNumbers(width, height, steps, cfgScale);
        int size = 0;
        for (int i = 0; i < PROMPTS.size(); i++) {
            checkLength(PROMPTS.get(i), prompts.get(i).text.length);
            size += prompts.get(i).text.length;
        }
        checkTexts(prompts);
        int payloadLen = Protocol.REQUEST_HEAD_SIZE + size;
        ByteBuffer out = Protocol.frame(Protocol.HEADER_SIZE + payloadLen, Protocol.TYPE_REQUEST, payloadLen);
        out.putLong(requestId).putInt(0).putInt(width).putInt(height).putInt(steps);
        out.putFloat(cfgScale + 0.0f).putLong(seed); // -0.0 + 0.0 is 0.0
        int offset = 0;
        for (Prompt prompt : prompts) {
            out.putInt(offset).putInt(prompt.text.length);
            offset += prompt.text.length;
        }
        for (Prompt prompt : prompts) {
            out.put(prompt.text);
        }
        return out.flip();
    }

    /** Steps 5 to 15 of the checks. {@code payload} holds what was kept of a payload of {@code payloadLen} bytes. */
    static Request decode(ByteBuffer payload, long payloadLen) throws InvalidField {
        if (payloadLen < 12) {
            throw new InvalidField("payload_len", MALFORMED, "payload_len is " + payloadLen + ", less than 12");
        }
        if (payload.getInt(8) != 0) {
            throw new InvalidField("model_id", INVALID_MODEL_ID, "model_id is " + u32(payload, 8) + ", not 0");
        }
        if (payloadLen < Protocol.REQUEST_HEAD_SIZE) {
            throw new InvalidField("payload_len", MALFORMED, "payload_len is " + payloadLen + ", less than 60");
        }
        float cfgScale = payload.getFloat(24);
        checkNumbers(u32(payload, 12), u32(payload, 16), u32(payload, 20), cfgScale);
        for (int i = 0; i < PROMPTS.size(); i++) {
            checkLength(PROMPTS.get(i) + "_length", u32(payload, 40 + 8 * i));
        }
        long dataLen = payloadLen - Protocol.REQUEST_HEAD_SIZE;
        if (dataLen > Protocol.MAX_PROMPT_DATA) {
            throw new InvalidField("payload_len", INVALID_PROMPT, "prompt_data has " + dataLen
                    + " bytes, more than " + Protocol.MAX_PROMPT_DATA);
        }
        Prompt[] prompts = new Prompt[PROMPTS.size()];
        for (int i = 0; i < prompts.length; i++) {
            long offset = u32(payload, 36 + 8 * i);
            long length = u32(payload, 40 + 8 * i);
            if (offset + length > dataLen) {
                throw new InvalidField(PROMPTS.get(i) + "_offset", INVALID_PROMPT, PROMPTS.get(i) + "_offset is "
                        + offset + ": its " + length + " bytes end beyond the " + dataLen + " of prompt_data");
            }
            byte[] text = new byte[(int) length];
            payload.get(Protocol.REQUEST_HEAD_SIZE + (int) offset, text);
            prompts[i] = new Prompt((int) offset, text);
        }
        checkTexts(List.of(prompts));
        return new Request(payload.getLong(0), payload.getInt(12), payload.getInt(16), payload.getInt(20),
                cfgScale + 0.0f, payload.getLong(28), List.of(prompts)); // -0.0 + 0.0 is 0.0
    }

    private static void checkNumbers(long width, long height, long steps, float cfgScale) throws InvalidField {
        checkSide("width", width);
        checkSide("height", height);
        if (steps < 1 || steps > 100) {
            throw new InvalidField("steps", INVALID_STEPS, "steps is " + steps + ", not 1 to 100");
        }
        if (!(cfgScale >= 0 && cfgScale <= 20)) { // a NaN is neither
            throw new InvalidField("cfg_scale", INVALID_CFG, "cfg_scale is " + cfgScale + ", not 0.0 to 20.0");
        }
    }

    private static void checkSide(String field, long pixels) throws InvalidField {
        if (!Protocol.isSide(pixels)) {
            throw new InvalidField(field, INVALID_DIMENSIONS,
                    field + " is " + pixels + ", not 64 to 2048 and a multiple of 64");
        }
    }

    private static void checkLength(String field, long length) throws InvalidField {
        if (length < 1 || length > Protocol.MAX_PROMPT) {
            throw new InvalidField(field, INVALID_PROMPT,
                    field + " is " + length + " bytes, not 1 to " + Protocol.MAX_PROMPT);
        }
    }

    /** All three are checked for UTF-8 before the first is checked for the byte 0. The messages tell no text. */
    private static void checkTexts(List<Prompt> prompts) throws InvalidField {
        for (int i = 0; i < PROMPTS.size(); i++) {
            try {
                StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(prompts.get(i).text)); // a strict decoder
            } catch (CharacterCodingException e) {
                throw new InvalidField(PROMPTS.get(i), INVALID_PROMPT, PROMPTS.get(i) + " is not UTF-8");
            }
        }
        for (int i = 0; i < PROMPTS.size(); i++) {
            for (byte b : prompts.get(i).text) {
                if (b == 0) {
                    throw new InvalidField(PROMPTS.get(i), INVALID_PROMPT, PROMPTS.get(i) + " contains the byte 0");
                }
            }
        }
    }
}
