//! From `weave generate` to a PNG: the real client, the real daemon, the real engine, the demo model.
#![cfg(feature = "sdcpp")]

mod harness;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use harness::{Answer, Client, Daemon, sized_request, weave};
use rustix::process::Signal;
use weave_core::error::ErrorCode;
use weave_daemon::demo;

fn daemon() -> Daemon {
    Daemon::start(&["--threads=1"])
}

/// What there is to draw, and how.
#[derive(Clone, Copy)]
struct Scene<'a> {
    prompt: &'a str,
    seed: u64,
    side: u32,
    steps: u32,
}

impl Scene<'_> {
    fn generate(&self, weave: &mut Command, daemon: &Daemon, file: &Path) -> Output {
        weave
            .args(["generate", self.prompt, "--cfg=1", "--force", "--quiet"])
            .arg(format!("--width={}", self.side))
            .arg(format!("--height={}", self.side))
            .arg(format!("--steps={}", self.steps))
            .arg(format!("--seed={}", self.seed))
            .arg("--socket")
            .arg(&daemon.socket)
            .arg("-o")
            .arg(file)
            .output()
            .unwrap()
    }

    fn png(&self, daemon: &Daemon, folder: &Path) -> Picture {
        let file = folder.join("picture.png");
        let output = self.generate(&mut weave(), daemon, &file);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Picture::read(&file)
    }
}

#[derive(PartialEq)]
struct Picture {
    width: usize,
    pixels: Vec<u8>,
    texts: Vec<(String, String)>,
}

impl Picture {
    fn read(path: &PathBuf) -> Self {
        let mut reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((frame.color_type, frame.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        let info = reader.info();
        let latin = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone()));
        let utf8 = info.utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap()));
        Self { width: usize::try_from(frame.width).unwrap(), texts: latin.chain(utf8).collect(), pixels }
    }

    /// The name of the colour that a square of 12 pixels is nearest to.
    fn colour(&self, left: usize, top: usize) -> &'static str {
        let mut sum = [0.0; 3];
        for y in top..top + 12 {
            for x in left..left + 12 {
                for (channel, sum) in sum.iter_mut().enumerate() {
                    *sum += f64::from(self.pixels[(y * self.width + x) * 3 + channel]) / 255.0 / 144.0;
                }
            }
        }
        let distance =
            |colour: &[f64; 3]| -> f64 { colour.iter().zip(sum).map(|(a, b)| (a - b).powi(2)).sum() };
        COLOURS.iter().min_by(|a, b| distance(&a.1).total_cmp(&distance(&b.1))).unwrap().0
    }
}

/// The colours that the model was trained on.
const COLOURS: [(&str, [f64; 3]); 12] = [
    ("red", [1.0, 0.0, 0.0]),
    ("green", [0.0, 0.7, 0.0]),
    ("blue", [0.0, 0.0, 1.0]),
    ("yellow", [1.0, 1.0, 0.0]),
    ("white", [1.0, 1.0, 1.0]),
    ("black", [0.0, 0.0, 0.0]),
    ("orange", [1.0, 0.5, 0.0]),
    ("purple", [0.5, 0.0, 0.7]),
    ("cyan", [0.0, 1.0, 1.0]),
    ("pink", [1.0, 0.5, 0.75]),
    ("gray", [0.5, 0.5, 0.5]),
    ("brown", [0.5, 0.25, 0.1]),
];

#[test]
fn a_dozen_pictures_show_what_their_prompts_say() {
    let daemon = daemon();
    let folder = tempfile::tempdir().unwrap();
    let scenes = [
        ("a red circle on a blue background", "red", "blue"),
        ("a yellow triangle on black", "yellow", "black"),
        ("a green square on a white background", "green", "white"),
        ("a white heart on a red background", "white", "red"),
        ("an orange star on a purple background", "orange", "purple"),
        ("a blue diamond on a yellow background", "blue", "yellow"),
        ("a black cross on a cyan background", "black", "cyan"),
        ("a pink circle on a green background", "pink", "green"),
        ("a cyan square on a brown background", "cyan", "brown"),
        ("a purple circle on gray", "purple", "gray"),
        ("draw a brown square on a pink background", "brown", "pink"),
        ("a gray diamond on an orange background", "gray", "orange"),
    ];
    let mut wrong = Vec::new();
    for (seed, (prompt, shape, background)) in (1..).zip(scenes) {
        let scene = Scene { prompt, seed, side: 128, steps: 8 };
        let picture = scene.png(&daemon, folder.path());
        let seen = (picture.colour(58, 58), [picture.colour(0, 0), picture.colour(116, 116)]);
        if seen != (shape, [background; 2]) {
            wrong.push(format!("{prompt:?} shows {seen:?}"));
        }
        let parameters = picture.texts.iter().find(|(keyword, _)| keyword == "parameters");
        let (_, parameters) = parameters.expect("the parameters are in the file");
        assert!(parameters.starts_with(prompt), "{parameters}");
        assert!(parameters.contains(&format!("Seed: {seed}")), "{parameters}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn flash_attention_draws_the_same_picture_with_other_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene { prompt: "a red circle on a blue background", seed: 1, side: 128, steps: 8 };
    let without = scene.png(&daemon(), folder.path());
    let daemon = Daemon::start(&["--threads=1", "--flash-attention=true", "--log=debug"]);
    let with = scene.png(&daemon, folder.path());
    daemon.log.wait("Using flash attention in the diffusion model");
    assert_eq!((with.colour(58, 58), with.colour(0, 0)), ("red", "blue"));
    assert!(with.pixels != without.pixels, "the setting does nothing");
}

#[test]
fn the_same_prompt_and_seed_give_the_same_pixels_and_others_give_others() {
    let daemon = daemon();
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene { prompt: "a red circle on a blue background", seed: 7, side: 64, steps: 2 };
    let first = scene.png(&daemon, folder.path());
    assert!(scene.png(&daemon, folder.path()).pixels == first.pixels);
    let other_prompt = Scene { prompt: "a green star on black", ..scene };
    assert!(other_prompt.png(&daemon, folder.path()).pixels != first.pixels);
    // Seeds up to the last one count with all of their bits.
    let seeds = [8, 7 | 1 << 63, u64::MAX];
    let pictures = seeds.map(|seed| Scene { seed, ..scene }.png(&daemon, folder.path()).pixels);
    assert!(pictures[0] != first.pixels && pictures[1] != first.pixels && pictures[2] != pictures[1]);
    assert!(Scene { seed: u64::MAX, ..scene }.png(&daemon, folder.path()).pixels == pictures[2]);
    // A new daemon draws the same: nothing of it depends on what was drawn before.
    let fresh = Daemon::start(&["--threads=1"]);
    assert!(Scene { seed: u64::MAX, ..scene }.png(&fresh, folder.path()).pixels == pictures[2]);
}

#[test]
fn twenty_requests_from_five_clients_get_their_own_images() {
    let daemon = daemon();
    let scenes: [(&str, u64); 5] = [
        ("a red circle", 1),
        ("a blue square", 2),
        ("a green star", 3),
        ("a pink heart", 4),
        ("a red circle", 5),
    ];
    let ask = |client: &mut Client, id: u64, (prompt, seed): (&str, u64)| {
        client.write(&sized_request(id, prompt, seed, 64, 64, 1));
    };
    let mut alone = daemon.connect();
    let expected = scenes.map(|scene| {
        ask(&mut alone, 1, scene);
        alone.image().1
    });
    for (i, image) in expected.iter().enumerate() {
        assert!(expected[..i].iter().all(|other| other != image), "the images can be told apart");
    }
    std::thread::scope(|scope| {
        for client_no in 0..5usize {
            let (daemon, expected) = (&daemon, &expected);
            scope.spawn(move || {
                let mut client = daemon.connect();
                let scene_of = |n: usize| (client_no + 2 * n) % 5;
                for n in 0..4 {
                    ask(&mut client, u64::try_from(n).unwrap(), scenes[scene_of(n)]);
                }
                let mut seen = [false; 4];
                for _ in 0..4 {
                    let (id, pixels) = client.image();
                    let n = usize::try_from(id).unwrap();
                    assert!(!std::mem::replace(&mut seen[n], true), "answered twice");
                    assert!(pixels == expected[scene_of(n)], "the wrong image for {id}");
                }
            });
        }
    });
}

#[test]
fn a_worker_killed_in_a_generation_gives_a_clear_error_and_then_an_image() {
    let daemon = daemon();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("never.png");
    let long = Scene { prompt: "a red circle", seed: 1, side: 256, steps: 100 };
    let mut weave = weave();
    let output = std::thread::scope(|scope| {
        let client = scope.spawn(|| long.generate(&mut weave, &daemon, &file));
        daemon.log.wait("256×256, 100 steps");
        daemon.kill_worker();
        client.join().unwrap()
    });
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(7), "{text}");
    assert!(text.contains("killed by signal 9") && text.contains("try again"), "{text}");
    assert!(!file.exists());
    Scene { side: 64, steps: 1, ..long }.png(&daemon, folder.path());
}

#[test]
fn sigterm_lets_the_engine_finish_its_image() {
    let mut daemon = daemon();
    let mut client = daemon.connect();
    client.write(&sized_request(1, "a red circle", 1, 64, 64, 2));
    daemon.log.wait("request 1:");
    // Said before the first image, at the default level.
    assert!(daemon.log.all().contains("INFO  worker 0: computing on "), "{}", daemon.log.all());
    daemon.signal(Signal::TERM);
    assert_eq!(client.image().0, 1);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_model_that_is_damaged_while_the_daemon_runs_is_an_answer_and_not_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("taesd.safetensors");
    let demo = demo::unpack(&demo::cache_dir().unwrap(), &weave_trust::Rules::default()).unwrap();
    std::os::unix::fs::symlink(&demo.taesd, &file).unwrap();
    let daemon = Daemon::start(&[
        "--threads=1",
        &format!("--diffusion-model={}", demo.diffusion_model.display()),
        &format!("--clip-l={}", demo.clip_l.display()),
        &format!("--taesd={}", file.display()),
    ]);
    let mut client = daemon.connect();
    client.write(&sized_request(1, "a red circle", 1, 64, 64, 1));
    assert_eq!(client.image().0, 1);
    std::fs::remove_file(&file).unwrap();
    // A well-formed file without a tensor.
    std::fs::write(&file, b"\x08\0\0\0\0\0\0\0{}      \0").unwrap();
    daemon.kill_worker();
    client.write(&sized_request(2, "a red circle", 1, 64, 64, 1));
    match client.answer() {
        Some(Answer::Error { id: 2, code: ErrorCode::GpuError, text }) => {
            assert!(!text.contains(folder.path().to_str().unwrap()), "no path goes to a client: {text}");
        }
        other => panic!("{other:?}"),
    }
    daemon.log.wait("taesd.safetensors is without any tensor");
    // Once it is whole again, so is the daemon.
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&demo.taesd, &file).unwrap();
    client.write(&sized_request(3, "a red circle", 1, 64, 64, 1));
    while let Some(Answer::Error { .. }) = client.answer() {
        client.write(&sized_request(3, "a red circle", 1, 64, 64, 1));
    }
}

/// Seven chunks of tokens. With words of one letter there can be fourteen, which take four times as long.
#[test]
fn the_longest_prompt_gives_an_image() {
    let daemon = daemon();
    let mut client = daemon.connect();
    let mut prompt = "a red circle, (blue:1.2) ".repeat(82);
    prompt.truncate(weave_core::limits::MAX_PROMPT_LEN as usize);
    assert_eq!(prompt.len(), 2048);
    client.write(&sized_request(1, &prompt, 1, 64, 64, 1));
    assert_eq!(client.image().0, 1);
}

#[test]
fn what_is_tuned_reaches_the_engine() {
    let draw = |flags: &[&str]| {
        let flags = [&["--threads=1", "--warm-up=false", "--log=debug"], flags].concat();
        let daemon = Daemon::start(&flags);
        let mut client = daemon.connect();
        client.write(&sized_request(1, "a red circle on a blue background", 7, 128, 64, 2));
        (client.image().1, daemon.log.all())
    };
    let (plain, _) = draw(&[]);
    for same in [
        &["--device=cpu", "--backend=te=CPU,vae=cpu", "--params-backend=te=disk"][..],
        &["--mmap=true", "--vae-tiling-above=128"],
        &["--sampler=euler", "--scheduler=discrete", "--flow-shift=3", "--rng=cuda", "--vae-tiling=off"],
    ] {
        assert!(draw(same).0 == plain, "{same:?} changes pixels");
    }
    for other in [
        "--sampler=heun",
        "--scheduler=sgm_uniform",
        "--flow-shift=1.5",
        "--rng=cpu",
        "--weight-type=q4_0",
        "--tensor-type-rules=joint_blocks=q8_0",
    ] {
        assert!(draw(&[other]).0 != plain, "{other} does nothing");
    }
    // Tiles of 8×8 latent pixels, of which the image has 16×8.
    let tiled = draw(&["--vae-tiling=on", "--vae-tile-size=8"]).0;
    assert!(
        tiled != plain && tiled != draw(&["--vae-tiling=on", "--vae-tile-size=8", "--vae-tile-overlap=0"]).0
    );
    assert!(tiled == draw(&["--vae-tiling-above=64", "--vae-tile-size=8"]).0);

    // What changes no pixel on the CPU, the engine says.
    let said = draw(&["--preset=4gb", "--vae-conv-direct=true"]).1;
    for words in ["Using flash attention\n", "Using Conv2d direct in the vae model\n"] {
        assert!(said.contains(words), "{words:?} is not in\n{said}");
    }
}

#[test]
fn devices_are_listed_and_those_that_are_missing_are_named() {
    let ask = |flags: &[&str]| {
        let output = harness::weaved().args(flags).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, words, errors) = ask(&["devices"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(words.contains("CUDA: ") && words.contains("GiB free"), "{words}");
    let (_, json, _) = ask(&["devices", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let cpu = json.as_array().unwrap().iter().find(|device| device["kind"] == "cpu").unwrap();
    assert_eq!((cpu["name"].as_str(), cpu["back_end"].as_str()), (Some("CPU"), Some("CPU")));
    assert!(cpu["free"].as_u64().unwrap() <= cpu["total"].as_u64().unwrap());
    let (code, names, _) = ask(&["devices", "--names"]);
    assert!(code == Some(0) && names.contains("memory unknown"), "{names}");

    // Before anything listens, and in the check that comes before that.
    let folder = harness::private_folder();
    let socket = format!("--socket={}", folder.path().join("weave.sock").display());
    for flag in ["--device=CUDA77", "--backend=te=CUDA77", "--params-backend=vae=CUDA77"] {
        for (command, expected) in [("serve", 78), ("check", 78), ("devices", 1)] {
            let (code, words, errors) = ask(&[command, flag, &socket]);
            let said = words + &errors;
            assert_eq!(code, Some(expected), "{command} {flag}: {said}");
            assert!(said.contains("there is no device CUDA77; there is ") && said.contains("CPU"), "{said}");
        }
    }
    for flag in ["--device=cpu", "--backend=diffusion=cpu"] {
        let (code, _, errors) = ask(&["serve", flag, "--require-gpu", &socket]);
        assert_eq!(code, Some(78), "{errors}");
        assert!(errors.contains("require_gpu is set, but the engine would compute on CPU"), "{errors}");
    }
}

#[test]
fn threads_of_the_engine_do_not_spin() {
    let daemon = Daemon::start(&["--threads=2", "--warm-up=false"]);
    let mut client = daemon.connect();
    client.write(&sized_request(1, "a red circle", 7, 64, 64, 1));
    assert_eq!(client.image().0, 1);
    let [worker] = daemon.workers()[..] else { panic!("one worker") };
    let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    let policies =
        environment.split(|byte| *byte == 0).filter(|entry| entry.starts_with(b"OMP_WAIT_POLICY="));
    let policies: Vec<_> = policies.collect();
    assert_eq!(policies, [&b"OMP_WAIT_POLICY=PASSIVE"[..]]);
    // And there are such threads at all.
    let tasks = std::fs::read_dir(format!("/proc/{worker}/task")).unwrap().count();
    let maps = std::fs::read_to_string(format!("/proc/{worker}/maps")).unwrap();
    assert!(tasks >= 2 && (maps.contains("libgomp") || maps.contains("libomp")), "{tasks} threads");
}

/// Kilobytes that a process had in memory at most, since `clear_refs` was written to, or has now.
fn memory_of(pid: i32, which: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// The numbers in MEMORY.md: `MEMORY_SIDES=64,128,192,256,512 cargo test -p weave-daemon --release --test
/// demo_model memory -- --nocapture`.
#[test]
fn what_an_image_takes_in_memory_is_known_before_it_is_made() {
    let daemon = Daemon::start(&["--threads=1", "--log=debug"]);
    daemon.log.wait("request 0: done");
    let mut client = daemon.connect();
    let sides = std::env::var("MEMORY_SIDES").unwrap_or("64,128,256".to_owned());
    println!("| side | estimate, MB | measured, MB |\n| --- | --- | --- |");
    for (id, side) in (1..).zip(sides.split(',').map(|side| side.parse::<u32>().unwrap())) {
        let [worker] = daemon.workers()[..] else { panic!("one worker") };
        std::fs::write(format!("/proc/{worker}/clear_refs"), "5").unwrap();
        let before = memory_of(worker, "VmRSS:");
        client.write(&sized_request(id, "a red circle", 7, side, side, 1));
        assert_eq!(client.image().0, id);
        let measured = (memory_of(worker, "VmHWM:") - before) * 1024;
        let nth = usize::try_from(id).unwrap();
        let line = daemon.log.wait_nth("this image takes about ", nth);
        let (_, words) = line.split_once("this image takes about ").unwrap();
        let estimate: u64 = words.split(' ').next().unwrap().parse().unwrap();
        println!("| {side} | {estimate} | {:.1} |", measured as f64 / f64::from(1 << 20));
        let estimate = estimate << 20;
        // Memory that was left from the image before is used again, and doesn't show: 5 MB more or less, by when it was freed.
        let slack = (measured / 10).max(20 << 20);
        assert!(
            measured < estimate + slack && estimate < measured + slack,
            "{side}: {estimate}, not {measured}"
        );
    }
}

#[test]
fn what_does_not_fit_is_tiled_or_refused_before_it_is_computed() {
    let start = |flags: &[&str]| {
        let daemon = Daemon::start(&[&["--threads=1", "--vae-tile-size=8"], flags].concat());
        daemon.log.wait("request 0: done");
        daemon
    };
    // 16 MiB: enough for 64×64, for 128×128 with tiles, and for no more than that.
    let daemon = start(&["--memory-limit=0.016"]);
    let mut client = daemon.connect();
    let mut ask = |id, side| client.write(&sized_request(id, "a red circle", 7, side, side, 1));
    ask(1, 64);
    ask(2, 128);
    ask(3, 1024);
    ask(4, 64);
    let first = client.image();
    let tiled = client.image();
    daemon.log.wait("decoding this image in tiles");
    let text = client.expect_error(3, ErrorCode::OutOfMemory);
    assert!(text.contains(" MB of RAM and 16 MB are to be had; ask for "), "{text}");
    assert!(client.image().1 == first.1, "it goes on as before");

    let off = start(&["--memory-limit=0.016", "--vae-tiling=off"]);
    let mut client = off.connect();
    client.write(&sized_request(1, "a red circle", 7, 128, 128, 1));
    client.expect_error(1, ErrorCode::OutOfMemory);
    let on = start(&["--memory-limit=off", "--vae-tiling=on"]);
    let mut client = on.connect();
    client.write(&sized_request(1, "a red circle", 7, 128, 128, 1));
    assert!(client.image().1 == tiled.1, "tiles are tiles, whoever asked for them");
}

/// The engine reads its model when it draws for the first time. From then on no system call of its worker takes a path,
/// unless the model stays on the disk.
#[cfg(target_os = "linux")]
#[test]
fn the_first_image_is_the_last_one_for_which_files_are_read() {
    let filters = |flags: &[&str]| {
        let folder = harness::private_folder();
        let socket = folder.path().join("weave.sock");
        let mut command = harness::weaved();
        command.args(["--threads=2", "--sandbox=require", "--socket"]).arg(&socket).args(flags);
        // Threads can't be bound to processors there, and OpenMP would give up over that.
        command.env("OMP_PROC_BIND", "true").env("OMP_WAIT_POLICY", "PASSIVE").stdin(Stdio::null());
        let daemon = Daemon::run(&mut command, &socket);
        let mut client = daemon.connect();
        for id in 1..3 {
            client.write(&sized_request(id, "a red circle", 1, 64, 64, 1));
            assert!(matches!(client.answer(), Some(Answer::Image { .. })), "{flags:?}");
        }
        let [worker] = daemon.workers()[..] else { panic!() };
        let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:\t").map(str::to_owned)).unwrap()
    };
    assert_eq!(filters(&[]), "3");
    assert_eq!(filters(&["--mmap=true"]), "3");
    assert_eq!(filters(&["--params-backend=disk"]), "2");
}
