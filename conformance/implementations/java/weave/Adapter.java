package weave;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.math.BigDecimal;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.zip.CRC32;

/** The codec behind the adapter protocol of weave-conform: a question a line on standard input, an answer a line. */
final class Adapter {
    private static final HexFormat HEX = HexFormat.of();
    private static final HexFormat UPPER_HEX = HEX.withUpperCase();
    private static final int MAX_STREAM = 17 * 1024 * 1024;

    private Adapter() {}

    public static void main(String[] args) throws IOException {
        BufferedReader questions = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        for (String line = questions.readLine(); line != null; line = questions.readLine()) {
            answers.println(Json.write(answer(object(Json.parse(line)))));
        }
    }

    static Map<String, Object> answer(Map<String, Object> question) {
        if (question.containsKey("read")) {
            return read(question);
        }
        try {
            return Map.of("hex", hex(write(question)));
        } catch (InvalidField e) {
            return Map.of("refused", e.field);
        }
    }

    private static Map<String, Object> read(Map<String, Object> question) {
        byte[] stream = join(list(question.get("bytes")));
        int cut = Math.min(number(question, "cut"), Math.max(1, stream.length));
        FrameReader<?> reader = string(question, "read").equals("server") ? new ServerReader()
                : new ClientReader(head -> {}); // any image will do
        List<Object> frames = new ArrayList<>();
        try {
            for (int at = 0; at < stream.length; at += cut) {
                ByteBuffer in = ByteBuffer.wrap(stream, at, Math.min(cut, stream.length - at));
                for (Object frame = reader.next(in); frame != null; frame = reader.next(in)) {
                    frames.add(outcome(frame));
                }
            }
        } catch (Violation e) {
            frames.add(Map.of("close", Map.of("because", e.requirement)));
        }
        return Map.of("frames", frames, "end", reader.state().name().toLowerCase(Locale.ROOT).replace('_', '-'));
    }

    private static Map<String, Object> outcome(Object frame) {
        if (frame instanceof Request request) {
            return Map.of("request", members(request));
        }
        if (frame instanceof ErrorAnswer answer) {
            return Map.of("answer", Map.of("hex", hex(answer.encode())));
        }
        return frame instanceof Response response ? Map.of("response", members(response))
                : Map.of("error", members((ErrorMessage) frame));
    }

    private static Map<String, Object> members(Request request) {
        Map<String, Object> members = new LinkedHashMap<>();
        members.put("request_id", Long.toUnsignedString(request.requestId()));
        members.put("model_id", 0);
        members.put("width", request.width());
        members.put("height", request.height());
        members.put("steps", request.steps());
        members.put("cfg_scale", UPPER_HEX.toHexDigits(Float.floatToIntBits(request.cfgScale())));
        members.put("seed", Long.toUnsignedString(request.seed()));
        for (int i = 0; i < Request.PROMPTS.size(); i++) {
            Request.Prompt prompt = request.prompts().get(i);
            members.put(Request.PROMPTS.get(i), Map.of("offset", prompt.offset(), "length", prompt.text().length,
                    "hex", HEX.formatHex(prompt.text())));
        }
        return members;
    }

    private static Map<String, Object> members(Response response) {
        Response.Head head = response.head();
        Map<String, Object> members = new LinkedHashMap<>();
        members.put("request_id", Long.toUnsignedString(head.requestId()));
        members.put("status", Response.STATUS);
        members.put("generation_time_ms", head.generationTimeMs());
        members.put("image_width", head.width());
        members.put("image_height", head.height());
        members.put("channels", head.channels());
        members.put("image_data_len", head.imageDataLen());
        members.put("crc32", crc32(response.pixels()));
        members.put("trailing", response.trailing());
        return members;
    }

    static String crc32(byte[] bytes) {
        CRC32 crc = new CRC32();
        crc.update(bytes);
        return HEX.toHexDigits(crc.getValue(), 8);
    }

    private static Map<String, Object> members(ErrorMessage error) {
        Map<String, Object> members = new LinkedHashMap<>();
        members.put("request_id", Long.toUnsignedString(error.requestId()));
        members.put("status", error.status());
        members.put("error_code", error.code());
        members.put("hex", HEX.formatHex(error.message()));
        members.put("shown", HEX.formatHex(error.shown().getBytes(StandardCharsets.UTF_8)));
        members.put("trailing", error.trailing());
        return members;
    }

    private static String hex(ByteBuffer bytes) {
        return HEX.formatHex(bytes.array(), 0, bytes.limit());
    }

    private static ByteBuffer write(Map<String, Object> question) throws InvalidField {
        long requestId = Long.parseUnsignedLong(string(question, "request_id"));
        switch (string(question, "write")) {
            case "request":
                return Request.of(requestId, number(question, "width"), number(question, "height"),
                        number(question, "steps"),
                        Float.intBitsToFloat(HexFormat.fromHexDigits(string(question, "cfg_scale"))),
                        Long.parseUnsignedLong(string(question, "seed")), hex(question, "clip_l"),
                        hex(question, "clip_g"), hex(question, "t5")).encode();
            case "response-head":
                return new Response.Head(requestId, longNumber(question, "generation_time_ms"),
                        number(question, "image_width"), number(question, "image_height"),
                        number(question, "channels")).encode();
            case "error":
                return error(requestId, longNumber(question, "error_code"), hex(question, "error_msg")).encode();
            default:
                throw new IllegalArgumentException("no such message: " + question.get("write"));
        }
    }

    /** The library can only be asked for codes that there are and for text. */
    private static ErrorAnswer error(long requestId, long number, byte[] message) throws InvalidField {
        ErrorCode code = ErrorCode.of(number);
        if (code == null) {
            throw new InvalidField("error_code", ErrorCode.INTERNAL, "error_code is " + number);
        }
        try {
            return new ErrorAnswer(requestId, code,
                    StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(message)).toString());
        } catch (CharacterCodingException e) {
            throw new InvalidField("error_msg", ErrorCode.INTERNAL, "error_msg is not UTF-8");
        }
    }

    /** Puts the pieces of a stream together, each repeated as often as it says. */
    static byte[] join(List<Object> pieces) {
        int size = 0;
        for (Object piece : pieces) {
            size = Math.addExact(size, Math.multiplyExact(hex(object(piece), "hex").length, times(piece)));
        }
        if (size > MAX_STREAM) {
            throw new IllegalArgumentException("a stream of " + size + " bytes");
        }
        ByteBuffer stream = ByteBuffer.allocate(size);
        for (Object piece : pieces) {
            byte[] bytes = hex(object(piece), "hex");
            for (int i = times(piece); i > 0; i--) {
                stream.put(bytes);
            }
        }
        return stream.array();
    }

    private static int times(Object piece) {
        return object(piece).containsKey("times") ? number(object(piece), "times") : 1;
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> object(Object value) {
        return (Map<String, Object>) value;
    }

    @SuppressWarnings("unchecked")
    static List<Object> list(Object value) {
        return (List<Object>) value;
    }

    static String string(Map<String, Object> members, String name) {
        return (String) members.get(name);
    }

    private static byte[] hex(Map<String, Object> members, String name) {
        return HEX.parseHex(string(members, name).replace(" ", "")); // the vectors have spaces
    }

    private static long longNumber(Map<String, Object> members, String name) {
        return ((BigDecimal) members.get(name)).longValueExact();
    }

    /** Where an int is too small for the number, no such value is allowed: -1 stands for it. */
    private static int number(Map<String, Object> members, String name) {
        long number = longNumber(members, name);
        return number == (int) number ? (int) number : -1;
    }
}
