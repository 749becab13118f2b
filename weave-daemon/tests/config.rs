//! Settings: which source wins, what is refused, and that the examples are right.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use weave_daemon::config::{Config, EngineKind, Isolation, Resolved, SETTINGS, unknown_variables};
use weave_daemon::engine::tuning::PRESETS;

fn resolve(flags: &[(&str, &str)], vars: &[(&str, &str)], file: Option<&Path>) -> Result<Config, String> {
    let flags: Vec<_> = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let vars = vars.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
    Config::resolve(&flags, vars, file).map_err(|error| error.to_string())
}

fn toml(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weaved.toml");
    fs::write(&file, text).unwrap();
    (folder, file)
}

#[test]
fn flags_come_before_variables_before_the_file_before_defaults() {
    let (_folder, file) = toml("queue = 1\nthreads = 2\nconnections = 3\n");
    let file = Some(file.as_path());
    let config = resolve(&[("queue", "7")], &[("WEAVE_QUEUE", "5"), ("WEAVE_THREADS", "6")], file).unwrap();
    assert_eq!((config.queue, config.threads, config.connections), (7, Some(6), 3));
    assert_eq!(config.generation_timeout, Config::default().generation_timeout);
    // An empty variable is one that isn't set.
    assert_eq!(resolve(&[], &[("WEAVE_QUEUE", "")], file).unwrap().queue, 1);
}

#[test]
fn the_file_takes_strings_and_numbers_and_its_paths_count_from_its_folder() {
    let (folder, file) = toml(
        "engine = \"pattern\"\nisolation = 'thread'\ndrain_timeout = 2\nstall_timeout = 0.5\n\
         clip_l = \"parts/l.gguf\"\nvae = \"/abs/vae\"\n",
    );
    let config = resolve(&[], &[], Some(&file)).unwrap();
    assert_eq!((config.engine, config.isolation), (EngineKind::Pattern, Isolation::Thread));
    assert_eq!((config.drain_timeout.as_millis(), config.stall_timeout.as_millis()), (2000, 500));
    assert_eq!(config.model.clip_l, Some(folder.path().join("parts/l.gguf")));
    assert_eq!(config.model.vae, Some(PathBuf::from("/abs/vae")));

    let (folder, file) =
        toml("allow_uids = 7\nallow_gids = \"root, 5\"\ntoken_file = \"t\"\nallow_remote = true\n");
    let config = resolve(&[], &[], Some(&file)).unwrap();
    assert_eq!((&config.access.uids[..], &config.access.gids[..]), (&[7][..], &[0, 5][..]));
    assert_eq!((config.token_file, config.allow_remote), (Some(folder.path().join("t")), true));
}

#[test]
fn what_cannot_be_used_is_named_with_its_place() {
    let of_file = |text: &str| {
        let (_folder, file) = toml(text);
        resolve(&[], &[], Some(&file)).unwrap_err()
    };
    for (text, words) in [
        ("\nqueue = 5000\n", "weaved.toml:2: queue is \"5000\", must be a whole number from 1 to 4096"),
        ("queue = 1\nqeue = 2\n", "weaved.toml:2: there is no setting \"qeue\""),
        ("queue = true\n", "weaved.toml:1: queue is \"true\", must be a whole number from 1 to 4096"),
        ("[model]\nfile = 1\n", "weaved.toml:1: model is"),
        ("queue = 1\nqueue = 2\n", "weaved.toml:2: "),
        ("engine = \n", "weaved.toml:1: "),
        // No worker could be told these two.
        ("socket = \"a\\u0000b\"\n", "weaved.toml:1: socket is"),
        ("stall_timeout = 1e-10\n", "must be seconds, from 0.000000001 to 315360000"),
    ] {
        let error = of_file(text);
        assert!(error.contains(words), "{error}");
    }
    for (name, value, words) in [
        ("allow-uids", "1000,nobody-by-this-name", "numbers, or names that stand in /etc/passwd"),
        ("allow-gids", "", "numbers, or names that stand in /etc/group"),
        ("allow-gids", "-1", "numbers, or names"),
        ("tcp", "localhost:7433", "an address and a port: 127.0.0.1:7433, [::1]:7433"),
        ("tcp", "127.0.0.1", "an address and a port"),
        ("allow-remote", "yes", "one of true, false"),
        ("sandbox", "maybe", "one of on, off, require"),
    ] {
        let error = resolve(&[(name, value)], &[], None).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    let names = ["WEAVE_QUEU", "WEAVE_QUEUE", "WEAVE_CONFIG", "WEAVE_OPENAI_URL", "PATH"].map(OsString::from);
    assert_eq!(unknown_variables(names.into_iter()).collect::<Vec<_>>(), ["WEAVE_QUEU"]);
    let error = resolve(&[], &[("WEAVE_THREADS", "many")], None).unwrap_err();
    assert_eq!(error, "WEAVE_THREADS: threads is \"many\", must be a whole number from 1 to 256");
}

#[test]
fn settings_survive_the_way_to_a_worker() {
    let (_folder, file) = toml(
        "engine = \"pattern\"\npattern = \"gradient\"\nfaults = \"fail@3,crash@boom,slow=0.25\"\n\
         allow_uids = \"1,2\"\nallow_gids = 3\ntrusted_folders = \"/a,/b\"\ntcp = \"[::1]:0\"\nallow_remote = true\ntoken_file = \"/t\"\n\
         sandbox = \"off\"\ndiffusion_model = \"/m\"\nthreads = 3\nflash_attention = true\n\
         generation_timeout = 1.5\nlog = \"debug\"\n",
    );
    let config = resolve(&[], &[], Some(&file)).unwrap();
    let flags = config.to_flags();
    let flags: Vec<_> = flags.iter().filter_map(|flag| flag.strip_prefix("--")?.split_once('=')).collect();
    assert_eq!(resolve(&flags, &[], None).unwrap(), config);
}

/// The settings in an example, with what their lines say.
fn example(name: &str) -> (String, Vec<(String, String)>) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let on: String = text
        .lines()
        .filter_map(|line| line.strip_prefix('#').filter(|rest| rest.starts_with(char::is_alphabetic)))
        .map(|line| format!("{line}\n"))
        .collect();
    let pairs = on.lines().map(|line| {
        let (name, value) = line.split_once('=').unwrap();
        (name.trim().to_owned(), value.trim().trim_matches('"').to_owned())
    });
    let pairs = pairs.collect();
    (on, pairs)
}

#[test]
fn the_examples_name_every_setting_and_can_be_used_as_they_are() {
    let names: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.name.to_owned()).collect();
    let (on, pairs) = example("example.toml");
    assert_eq!(pairs.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(), names);
    let (_folder, file) = toml(&on);
    let from_file = resolve(&[], &[], Some(&file)).unwrap();

    let (_, pairs) = example("example.env");
    let variables: BTreeSet<_> = SETTINGS
        .iter()
        .map(|setting| setting.variable())
        // These two are no settings of the table.
        .chain(["WEAVE_CONFIG".to_owned(), "WEAVE_CACHE_DIR".to_owned()])
        .collect();
    assert_eq!(pairs.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(), variables);
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(resolve(&[], &pairs, None).unwrap(), from_file, "both examples say the same");

    // What is shown as a default is one.
    let defaults = Config::default();
    assert_eq!(
        (from_file.queue, from_file.connections, from_file.log, from_file.pattern, from_file.isolation),
        (defaults.queue, defaults.connections, defaults.log, defaults.pattern, defaults.isolation)
    );
    assert_eq!(
        (from_file.generation_timeout, from_file.stall_timeout, from_file.drain_timeout),
        (defaults.generation_timeout, defaults.stall_timeout, defaults.drain_timeout)
    );
}

#[test]
fn a_preset_stands_below_everything_that_is_said_beside_it() {
    let shown = |flags: &[(&str, &str)], file: Option<&Path>| {
        let flags: Vec<_> = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let vars = [(OsString::from("WEAVE_MMAP"), OsString::from("false"))];
        Resolved::new(&flags, vars.into_iter(), file).unwrap()
    };
    // Whoever names the preset, and whoever sets a part of it.
    let (_folder, file) = toml("max_vram = 5\npreset = \"4gb\"\n");
    let all = shown(&[("preset", "8gb"), ("vae-tiling-above", "never")], Some(&file));
    let tuning = &all.config.tuning;
    assert_eq!((tuning.preset, &*tuning.params_backend, tuning.stream_layers), (Some("8gb"), "cpu", true));
    assert_eq!((tuning.max_vram, tuning.mmap, tuning.vae_tiling_above), (5.0, false, None));
    assert!(tuning.flash_attention);
    let text = all.to_toml();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(line("params_backend ").ends_with("# preset 8gb"), "{text}");
    assert!(line("preset ").ends_with("# --preset") && line("mmap ").ends_with("# WEAVE_MMAP"), "{text}");
    assert!(line("max_vram ").contains("weaved.toml:1"), "{text}");
    assert!(all.to_json().contains("\"kind\": \"preset\", \"origin\": \"preset 8gb\""), "{}", all.to_json());

    // What a preset decided is not decided again by a worker.
    let flags = all.config.to_flags();
    let flags: Vec<_> = flags.iter().filter_map(|flag| flag.strip_prefix("--")?.split_once('=')).collect();
    assert_eq!(resolve(&flags, &[], None).unwrap(), all.config);

    for (name, values) in PRESETS {
        let tuning = resolve(&[("preset", name)], &[], None).unwrap().tuning;
        assert_eq!((tuning.preset, tuning.without_effect()), (Some(*name), None));
        for (setting, _) in *values {
            assert!(SETTINGS.iter().any(|other| other.name == *setting), "{name} sets {setting}");
        }
    }
}

#[test]
fn the_engine_is_tuned_within_bounds_and_in_its_own_words() {
    for (name, value, words) in [
        ("preset", "6gb", "one of 4gb, 8gb, 12gb, 16gb, 24gb"),
        ("device", "CUDA 0", "`weaved devices` lists them"),
        ("device", "disk", "`weaved devices` lists them"),
        ("backend", "cpu", "PART=DEVICE"),
        ("backend", "te=disk", "PART=DEVICE"),
        ("params-backend", "unet=cpu", "parts are diffusion, te, vae"),
        ("params-backend", "te=", "PART=DEVICE"),
        ("max-vram", "NaN", "a number from -64 to 1024"),
        ("vae-tiling", "maybe", "one of auto, on, off"),
        ("vae-tiling-above", "4096", "a whole number from 64 to 2048"),
        ("vae-tile-size", "0", "a whole number from 8 to 256"),
        ("vae-tile-overlap", "0.6", "a number from 0 to 0.5"),
        ("weight-type", "q9", "auto, or one of f32, f16"),
        ("tensor-type-rules", "q8_0", "PATTERN=TYPE"),
        ("tensor-type-rules", "a\n=q8_0", "PATTERN=TYPE"),
        ("sampler", "Euler", "auto, or one of euler, euler_a"),
        ("scheduler", "ays", "auto, or one of discrete"),
        ("flow-shift", "0", "a number from 0.1 to 100"),
        ("rng", "gpu", "one of cuda, cpu, std_default"),
    ] {
        let error = resolve(&[(name, value)], &[], None).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    let flags = [("device", "CUDA1"), ("backend", "te=cpu, vae=CUDA0"), ("params-backend", "cpu,te=disk")];
    let tuning = resolve(&flags, &[], None).unwrap().tuning;
    assert_eq!(tuning.backend_spec().as_deref(), Some("CUDA1,te=cpu,vae=CUDA0"));
    assert_eq!(tuning.params_backend_spec(), Some("cpu,te=disk"));
    assert_eq!(tuning.devices().collect::<Vec<_>>(), ["CUDA1", "cpu", "CUDA0", "cpu"]);
    let none = Config::default().tuning;
    assert_eq!((none.backend_spec(), none.params_backend_spec(), none.devices().count()), (None, None, 0));

    let above = resolve(&[("vae-tiling-above", "512")], &[], None).unwrap().tuning;
    assert!(!above.tiles(512, 512) && above.tiles(576, 512) && above.tiles(2048, 192));
    let on = resolve(&[("vae-tiling", "on")], &[], None).unwrap().tuning;
    let off = resolve(&[("vae-tiling", "off"), ("vae-tiling-above", "64")], &[], None).unwrap().tuning;
    assert!(on.tiles(64, 64) && !off.tiles(2048, 2048) && !none.tiles(2048, 2048));

    let idle = resolve(&[("stream-layers", "true")], &[], None).unwrap().tuning;
    assert!(idle.without_effect().unwrap().contains("max_vram"));
    let idle = resolve(&[("stream-layers", "true"), ("max-vram", "4")], &[], None).unwrap().tuning;
    assert!(idle.without_effect().unwrap().contains("params_backend"));
}

/// Settings as editors of other systems save them.
#[test]
fn a_file_is_text_of_any_system() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weaved.toml");
    let text = "threads = 3\r\nworkers = 2\r\n";
    let marked = format!("\u{feff}{text}");
    let wide = |bytes: fn(u16) -> [u8; 2]| marked.encode_utf16().flat_map(bytes).collect::<Vec<_>>();
    for (what, content) in [
        ("CR LF", text.as_bytes().to_vec()),
        ("UTF-8 with a mark", marked.as_bytes().to_vec()),
        ("CR", text.replace('\n', "").into_bytes()),
        ("UTF-16 LE", wide(u16::to_le_bytes)),
        ("UTF-16 BE", wide(u16::to_be_bytes)),
    ] {
        std::fs::write(&path, content).unwrap();
        let config = resolve(&[], &[], Some(&path)).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((config.threads, config.workers), (Some(3), 2), "{what}");
    }
    for (content, words) in [
        (&b"# caf\xe9\n"[..], "it is not UTF-8 text from its byte 5 on"),
        (b"t\0h\0r\0", "it has a NUL as its byte 1"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = resolve(&[], &[], Some(&path)).unwrap_err();
        assert!(error.contains(words) && error.contains("save it as UTF-8"), "{error}");
    }
}

#[test]
fn a_file_without_end_is_not_read_to_its_end() {
    let error = resolve(&[], &[], Some(Path::new("/dev/zero"))).unwrap_err();
    assert_eq!(error, "can't read the settings in /dev/zero: it has more than 1048576 bytes");
}
