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
import java.util.zip.CRC32;

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
            String kind = object(frames.get(i)).keySet().iterator().next();
            Map<String, Object> want = object(object(frames.get(i)).get(kind));
            Map<String, Object> got = object(object(list(actual.get("frames")).get(i)).get(kind));
            switch (kind) {
                case "request" -> {
                    equalMembers(want, got, "request_id", "model_id", "width", "height", "steps", "seed");
                    equal("cfg_scale", object(want.get("cfg_scale")).get("bits"), got.get("cfg_scale"));
                    for (String prompt : Request.PROMPTS) {
                        equalMembers(object(want.get(prompt)), object(got.get(prompt)), "offset", "length");
                        equal(prompt, hex(blob(want.get(prompt))), object(got.get(prompt)).get("hex"));
                    }
                }
                case "answer" -> {
                    List<Object> bytes = List.of(got);
                    Map<String, Object> error = object(object(list(read(Map.of("receiver", "client", "bytes", bytes), 1)
                            .get("frames")).get(0)).get("error"));
                    equalMembers(want, error, "request_id", "status", "error_code");
                    equal("trailing", 0L, error.get("trailing"));
                }
                case "response" -> {
                    equalMembers(want, got, "request_id", "status", "generation_time_ms", "image_width",
                            "image_height", "channels", "image_data_len", "trailing");
                    CRC32 crc = new CRC32();
                    crc.update(blob(want.get("image_data")));
                    equal("crc32", crc.getValue(), Long.parseLong(string(got, "crc32"), 16));
                }
                case "error" -> {
                    equalMembers(want, got, "request_id", "status", "error_code", "trailing");
                    equal("error_msg", hex(blob(want.get("error_msg"))), got.get("hex"));
                }
                default -> equalMembers(want, got, "because");
            }
        }
    }

    /** Where the only frame of a vector was accepted, and a writer makes such frames, it must come out the same. */
    private static void writeAgain(Map<String, Object> vector) {
        List<Object> frames = list(read(vector, 4096).get("frames"));
        if (frames.size() != 1 || object(frames.get(0)).containsKey("answer")
                || object(frames.get(0)).containsKey("close")) {
            return;
        }
        String kind = object(frames.get(0)).keySet().iterator().next();
        Map<String, Object> question = new HashMap<>();
        object(object(frames.get(0)).get(kind)).forEach((name, value) ->
                question.put(name, value instanceof Number number ? new BigDecimal(number.toString()) : value));
        question.put("write", kind.equals("response") ? "response-head" : kind);
        question.put("error_msg", question.get("hex"));
        long end = 0;
        boolean writable = !vector.containsKey("sender");
        for (String name : Request.PROMPTS) {
            if (kind.equals("request")) {
                Map<String, Object> prompt = object(question.get(name));
                question.put(name, prompt.get("hex"));
                writable &= end == (int) prompt.get("offset");
                end += (int) prompt.get("length");
            }
        }
        byte[] stream = Adapter.join(list(vector.get("bytes")));
        writable &= !kind.equals("request")
                || end == stream.length - Protocol.HEADER_SIZE - Protocol.REQUEST_HEAD_SIZE; // no text of no prompt
        writable &= !kind.equals("error") || ErrorCode.of(((Number) question.get("error_code")).longValue()) != null;
        if (!writable) {
            notWritten++;
            return;
        }
        int length = kind.equals("response") ? Protocol.HEADER_SIZE + Protocol.RESPONSE_HEAD_SIZE : stream.length;
        equal("frame", hex(Arrays.copyOf(stream, length)), Adapter.answer(question).get("hex"));
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

    private static void equalMembers(Map<String, Object> expected, Map<String, Object> actual, String... names) {
        for (String name : names) {
            equal(name, expected.get(name), actual.get(name));
        }
    }

    /** Compares numbers of different types by what they look like. */
    private static void equal(String what, Object expected, Object actual) {
        if (!String.valueOf(expected).equals(String.valueOf(actual))) {
            throw new AssertionError(what + " is " + actual + ", not " + expected);
        }
    }
}
