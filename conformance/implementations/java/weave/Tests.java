package weave;

import static weave.Adapter.list;
import static weave.Adapter.object;
import static weave.Adapter.string;

import java.io.IOException;
import java.math.BigDecimal;
import java.net.SocketAddress;
import java.net.UnixDomainSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;

/** Reads the test vectors in the folder given as argument and writes them again; then lets client and server talk. */
final class Tests {
    private static int passed;
    private static int failed;
    private static int notWritten;

    private Tests() {}

    public static void main(String[] args) throws Exception {
        try (Stream<Path> files = Files.list(Path.of(args[0]))) {
            for (Path file : (Iterable<Path>) files.sorted()::iterator) {
                if (file.toString().endsWith(".json") && !file.endsWith("schema.json")) {
                    for (Object vector : list(object(Json.parse(Files.readString(file))).get("vectors"))) {
                        vector(object(vector));
                    }
                }
            }
        }
        System.out.println(passed + " vectors passed, " + failed + " failed; " + notWritten
                + " frames not written again: a writer does not make them, or lays prompt_data out differently");
        talk();
        System.exit(failed == 0 && passed > 0 ? 0 : 1);
    }

    private static void vector(Map<String, Object> vector) {
        try {
            int size = Adapter.join(list(vector.get("bytes"))).length;
            for (int cut : new int[] {Math.max(1, size), 7, 1}) {
                compare(object(vector.get("expect")), read(vector, cut));
            }
            writeAgain(vector);
            passed++;
        } catch (RuntimeException | AssertionError e) {
            failed++;
            System.out.println(vector.get("name") + ": " + e);
        }
    }

    private static Map<String, Object> read(Map<String, Object> vector, int cut) {
        return Adapter.answer(Map.of("read", vector.get("receiver"), "cut", BigDecimal.valueOf(cut),
                "bytes", vector.get("bytes")));
    }

    private static void compare(Map<String, Object> expected, Map<String, Object> actual) {
        equal("end", expected.get("end"), actual.get("end"));
        List<Object> frames = list(expected.get("frames"));
        equal("frames", frames.size(), list(actual.get("frames")).size());
        for (int i = 0; i < frames.size(); i++) {
            String kind = kind(frames.get(i));
            Map<String, Object> got = object(object(list(actual.get("frames")).get(i)).get(kind));
            if (kind.equals("answer")) {
                Map<String, Object> answer = read(Map.of("receiver", "client", "bytes", List.of(got)), 1);
                got = object(object(list(answer.get("frames")).get(0)).get("error"));
            }
            compareMembers(object(object(frames.get(i)).get(kind)), got);
        }
    }

    private static void compareMembers(Map<String, Object> expected, Map<String, Object> actual) {
        expected.forEach((name, value) -> {
            switch (name) {
                case "step", "field", "name" -> { } // nothing that is on the wire
                case "error_msg_len", "times" -> { } // the bytes that they count are compared
                case "cfg_scale" -> equal(name, object(value).get("bits"), actual.get(name));
                case "clip_l", "clip_g", "t5" -> compareMembers(object(value), object(actual.get(name)));
                case "text" -> equal(name, hex(blob(expected)), actual.get("hex"));
                case "error_msg" -> equal(name, hex(blob(value)), actual.get("hex"));
                case "image_data" -> equal(name, Adapter.crc32(blob(value)), actual.get("crc32"));
                default -> equal(name, value, actual.get(name));
            }
        });
    }

    /** Where the only frame of a vector was accepted, and a writer makes such frames, it must come out the same. */
    private static void writeAgain(Map<String, Object> vector) {
        List<Object> frames = list(read(vector, 4096).get("frames"));
        if (frames.size() != 1 || List.of("answer", "close").contains(kind(frames.get(0)))) {
            return;
        }
        String kind = kind(frames.get(0));
        Map<String, Object> question = new HashMap<>();
        object(object(frames.get(0)).get(kind)).forEach((name, value) ->
                question.put(name, value instanceof Number number ? new BigDecimal(number.toString()) : value));
        byte[] frame = Adapter.join(list(vector.get("bytes")));
        boolean written = !vector.containsKey("sender");
        if (kind.equals("request")) {
            int end = 0;
            for (String name : Request.PROMPTS) {
                Map<String, Object> prompt = object(question.get(name));
                question.put(name, prompt.get("hex"));
                written &= prompt.get("offset").equals(end);
                end += (int) prompt.get("length");
            }
            written &= end == frame.length - Protocol.HEADER_SIZE - Protocol.REQUEST_HEAD_SIZE;
        } else if (kind.equals("response")) {
            frame = Arrays.copyOf(frame, Protocol.HEADER_SIZE + Protocol.RESPONSE_HEAD_SIZE);
        } else {
            question.put("error_msg", question.get("hex"));
            written &= ErrorCode.of(((BigDecimal) question.get("error_code")).longValue()) != null;
        }
        if (written) {
            question.put("write", kind.equals("response") ? "response-head" : kind);
            equal("frame", hex(frame), Adapter.answer(question).get("hex"));
        } else {
            notWritten++;
        }
    }

    private static String kind(Object frame) {
        return object(frame).keySet().iterator().next();
    }

    private static void talk() throws IOException, InvalidField {
        Path folder = Files.createTempDirectory("weave");
        Path socket = folder.resolve("weave.sock");
        SocketAddress address = UnixDomainSocketAddress.of(socket);
        try {
            Server server = new Server(address);
            Thread thread = new Thread(() -> server.run());
            thread.start();
            equal("mode", "rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(socket)));
            equal("images", true, new Client(64, 128).run(address, 3, "a cat in space"));
            server.close();
        } finally {
            Files.delete(folder); // the server has removed its socket
        }
    }

    private static byte[] blob(Object value) {
        Map<String, Object> blob = object(value);
        BigDecimal times = (BigDecimal) blob.getOrDefault("times", BigDecimal.ONE);
        String hex = blob.containsKey("hex") ? string(blob, "hex")
                : hex(string(blob, "text").getBytes(StandardCharsets.UTF_8));
        return Adapter.join(List.of(Map.of("hex", hex, "times", times)));
    }

    private static String hex(byte[] bytes) {
        return HexFormat.of().formatHex(bytes);
    }

    /** Compares numbers of different types by what they look like. */
    private static void equal(String what, Object expected, Object actual) {
        if (!String.valueOf(expected).equals(String.valueOf(actual))) {
            throw new AssertionError(what + " is " + actual + ", not " + expected);
        }
    }
}
