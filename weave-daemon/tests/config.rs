//! Settings: which source wins, what is refused, and that the examples are right.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use weave_daemon::config::{
    ALIASES, Config, EngineKind, Isolation, Resolved, SETTINGS, Setting, unknown_flag, unknown_variable,
    unknown_variables,
};
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
        (
            "stall_timeout = 1e-10\n",
            "must be a time, such as 90, 250ms, 5m or 1h30m, from 0.000000001 to 315360000 seconds",
        ),
    ] {
        let error = of_file(text);
        assert!(error.contains(words), "{error}");
    }
    for (name, value, words) in [
        ("allow-uids", "1000,nobody-by-this-name", "numbers, or names that stand in /etc/passwd"),
        ("allow-gids", "weave,,root", "a list with commas in between, none of whose parts is empty"),
        ("allow-gids", "-1", "numbers, or names"),
        ("tcp", "localhost:7433", "an address and a port: 127.0.0.1:7433, [::1]:7433"),
        ("tcp", "127.0.0.1", "an address and a port"),
        ("allow-remote", "yes", "one of true, false"),
        ("sandbox", "maybe", "one of on, off, require"),
        (
            "default-size",
            "100x100",
            "auto, or WIDTHxHEIGHT, each 64 to 2048 and a multiple of 64, such as 512x768",
        ),
        ("default-size", "512", "WIDTHxHEIGHT"),
        ("default-size", "512x0", "WIDTHxHEIGHT"),
        ("default-size", "4096x64", "WIDTHxHEIGHT"),
        ("default-steps", "101", "auto, or a whole number from 1 to 100"),
        ("default-steps", "0", "a whole number from 1 to 100"),
        ("default-cfg-scale", "20.5", "auto, or a number from 0 to 20"),
        ("default-cfg", "NaN", "default_cfg_scale is \"NaN\", must be auto, or a number from 0 to 20"),
        ("default_cfg", "1", "there is no flag --default_cfg"),
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
fn a_setting_with_another_name_is_taken_under_both() {
    let of = |config: Config| config.default_cfg_scale;
    for name in ["default_cfg_scale", "default_cfg"] {
        let (_folder, file) = toml(&format!("{name} = 2.5\n"));
        assert_eq!(of(resolve(&[], &[], Some(&file)).unwrap()), Some(2.5));
        let variable = format!("WEAVE_{}", name.to_uppercase());
        assert_eq!(of(resolve(&[], &[(&variable, "3")], Some(&file)).unwrap()), Some(3.0));
        assert_eq!(unknown_variables([OsString::from(variable)].into_iter()).count(), 0);
        let flag = name.replace('_', "-");
        assert_eq!(of(resolve(&[(&flag, "auto")], &[], Some(&file)).unwrap()), None);
    }
}

#[test]
fn settings_survive_the_way_to_a_worker() {
    let (_folder, file) = toml(
        "engine = \"pattern\"\npattern = \"gradient\"\nfaults = \"fail@3,crash@boom,slow=0.25\"\n\
         allow_uids = \"1,2\"\nallow_gids = 3\ntrusted_folders = \"/a,/b\"\ntcp = \"[::1]:0\"\nallow_remote = true\ntoken_file = \"/t\"\n\
         sandbox = \"off\"\ndiffusion_model = \"/m\"\nthreads = 3\nflash_attention = true\n\
         generation_timeout = 1.5\nlog = \"debug\"\ndefault_size = \"64x128\"\ndefault_steps = 9\n",
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
        ("max-vram", "NaN", "a number of GiB from -64 to 1024"),
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

/// A value for each setting: those of the example.
fn good_values() -> Vec<(&'static Setting, String)> {
    let (_, pairs) = example("example.toml");
    let of = |name: &str| pairs.iter().find(|(other, _)| other == name).unwrap().1.clone();
    SETTINGS.iter().map(|setting| (setting, of(setting.name))).collect()
}

fn from_flag(setting: &Setting, value: &str) -> Result<Config, String> {
    resolve(&[(&setting.flag(), value)], &[], None)
}

fn from_variable(setting: &Setting, value: &str) -> Result<Config, String> {
    resolve(&[], &[(&setting.variable(), value)], None)
}

/// The value as TOML.
fn from_file(setting: &Setting, value: &str) -> Result<Config, String> {
    let (_folder, file) = toml(&format!("{} = {value}\n", setting.name));
    resolve(&[], &[], Some(&file))
}

#[test]
fn blanks_around_a_value_are_dropped_wherever_it_comes_from() {
    for (setting, value) in good_values() {
        let good = from_flag(setting, &value).unwrap();
        assert_eq!(from_flag(setting, &format!(" {value}\t")), Ok(good.clone()), "{}", setting.name);
        assert_eq!(from_variable(setting, &format!("\t{value} \n")), Ok(good.clone()), "{}", setting.name);
        assert_eq!(from_file(setting, &format!("\" {value}  \"")), Ok(good), "{}", setting.name);
    }
}

#[test]
fn a_variable_or_text_that_is_empty_is_not_set_and_an_empty_flag_is_refused() {
    for setting in SETTINGS {
        for empty in ["", " ", "\t "] {
            let error = from_flag(setting, empty).unwrap_err();
            let place = format!("--{}: {} is \"\", must be ", setting.flag(), setting.name);
            assert!(
                error.starts_with(&place) && error.ends_with("; leave the flag out for the default"),
                "{error}"
            );
            assert_eq!(from_variable(setting, empty), Ok(Config::default()), "{}", setting.name);
            assert_eq!(
                from_file(setting, &format!("\"{empty}\"")),
                Ok(Config::default()),
                "{}",
                setting.name
            );
        }
    }
}

#[test]
fn lists_have_commas_or_are_arrays_and_no_empty_part() {
    let is_list = |setting: &Setting| ["LIST", "COMMAND"].contains(&setting.value);
    let (lists, others): (Vec<_>, Vec<_>) = good_values().into_iter().partition(|(s, _)| is_list(s));
    assert_eq!(lists.len(), 8);
    for (setting, value) in lists {
        let separator = if setting.value == "LIST" { "," } else { " " };
        let good = from_flag(setting, &value).unwrap();
        let parts: Vec<_> = value.split(separator).collect();
        let array: Vec<_> = parts.iter().map(|part| format!("\" {part} \"")).collect();
        let array = format!("[{}]", array.join(", "));
        assert_eq!(from_file(setting, &array), Ok(good.clone()), "{array}");
        assert_eq!(from_file(setting, "[]"), Ok(Config::default()), "{}", setting.name);
        let error = from_file(setting, &format!("[\"{}\", \"a{separator}b\"]", parts[0])).unwrap_err();
        assert!(error.contains("must be a list without"), "{error}");
        let error = from_file(setting, "[[1]]").unwrap_err();
        assert!(
            error.ends_with(&format!("{} is \"[[1]]\", must be a list of strings or numbers", setting.name))
        );
        if separator == " " {
            continue;
        }
        let spaced = parts.join(" ,\t");
        assert_eq!(from_flag(setting, &spaced), Ok(good.clone()), "{spaced}");
        assert_eq!(from_variable(setting, &spaced), Ok(good.clone()), "{spaced}");
        for empty in [format!("{value},"), format!(",{value}"), format!("{value}, ,{value}")] {
            for refused in [from_flag(setting, &empty), from_variable(setting, &empty)] {
                let error = refused.unwrap_err();
                assert!(error.contains(", none of whose parts is empty"), "{error}");
            }
        }
    }
    for (setting, value) in others {
        let error = from_file(setting, &format!("[\"{value}\"]")).unwrap_err();
        let place = format!(":1: {} is ", setting.name);
        assert!(error.contains(&place) && error.contains("must be a string, a number"), "{error}");
    }
    let (_folder, file) = toml("allow_gids = [\"root\", 5]\nallow_uids = [7]\n");
    let access = resolve(&[], &[], Some(&file)).unwrap().access;
    assert_eq!((&access.uids[..], &access.gids[..]), (&[7][..], &[0, 5][..]));
}

#[test]
fn times_and_sizes_may_have_units() {
    for (setting, _) in good_values() {
        let equal: &[(&str, &str)] = match setting.value {
            "TIME" => {
                &[("300", "5m"), ("90", "90s"), ("5400", "1h30m"), ("0.25", "250ms"), ("86400", "1day")]
            }
            "GIB" => &[("0.5", "512MiB"), ("6", "6GiB"), ("6.5", "6.5 G")],
            _ => continue,
        };
        for (plain, with_unit) in equal {
            let good = from_flag(setting, plain).unwrap();
            assert_eq!(from_flag(setting, with_unit), Ok(good.clone()), "{} {with_unit}", setting.name);
            assert_eq!(from_variable(setting, with_unit), Ok(good.clone()), "{} {with_unit}", setting.name);
            assert_eq!(from_file(setting, plain), Ok(good.clone()), "{} {plain}", setting.name);
            assert_eq!(
                from_file(setting, &format!("\"{with_unit}\"")),
                Ok(good),
                "{} {with_unit}",
                setting.name
            );
        }
        for bad in ["5x", "m", "5M5", "5 parsecs", "-5m", "1e99", "inf", "GiB", "6KiB6"] {
            assert!(from_flag(setting, bad).is_err(), "{} {bad}", setting.name);
        }
    }
    assert_eq!(SETTINGS.iter().filter(|setting| setting.value == "TIME").count(), 9);
    // The same texts are a time to the `weave` command.
    for line in include_str!("../../weave-client/cli-base/src/times.txt").lines() {
        let (text, seconds) = line.split_once('=').unwrap();
        let time = resolve(&[("idle-timeout", text)], &[], None).ok().map(|config| config.idle_timeout);
        assert_eq!(time.map(|time| time.as_secs_f64()), seconds.trim().parse().ok(), "{text}");
    }
    // M is a month to the library that reads times.
    assert!(resolve(&[("idle-timeout", "5M")], &[], None).is_err());
}

#[test]
fn a_path_has_no_tilde_and_says_what_to_write() {
    for (setting, value) in good_values().into_iter().filter(|(_, value)| value.starts_with('/')) {
        let in_home = format!("~{value}");
        let refused = [
            from_flag(setting, &in_home),
            from_variable(setting, &in_home),
            from_file(setting, &format!("\"{in_home}\"")),
        ];
        for error in refused.map(Result::unwrap_err) {
            assert!(error.contains("must be a path without ~, which only shells know: /"), "{error}");
            assert!(error.ends_with(&value), "{error}");
        }
    }
    let error = resolve(&[("vae", "~bob/x")], &[], None).unwrap_err();
    assert!(error.ends_with("; ./~bob/x is a file of that name"), "{error}");
}

#[test]
fn other_names_of_settings_count_as_their_own() {
    for (alias, name) in ALIASES {
        assert!(Setting::find(name).is_some_and(|setting| setting.name == *name), "{name}");
        assert!(SETTINGS.iter().all(|setting| setting.name != *alias), "{alias}");
    }
    let socket = |config: Result<Config, String>| config.unwrap().socket.unwrap();
    let (_folder, file) = toml("socket_path = \"/file\"\n");
    assert_eq!(socket(resolve(&[], &[], Some(&file))), Path::new("/file"));
    let alias = ("WEAVE_SOCKET_PATH", "/alias");
    assert_eq!(socket(resolve(&[], &[alias], Some(&file))), Path::new("/alias"));
    // In whichever order the environment has them.
    for vars in [[alias, ("WEAVE_SOCKET", "/own")], [("WEAVE_SOCKET", "/own"), alias]] {
        assert_eq!(socket(resolve(&[], &vars, None)), Path::new("/own"));
    }
    assert_eq!(socket(resolve(&[("socket-path", "/flag")], &[alias], None)), Path::new("/flag"));
    let (_folder, file) = toml("socket = \"/a\"\n\nsocket_path = \"/b\"\n");
    let error = resolve(&[], &[], Some(&file)).unwrap_err();
    assert!(
        error.ends_with("weaved.toml:3: line 1 sets socket already, and socket_path is the same"),
        "{error}"
    );
}

#[test]
fn what_was_meant_is_guessed() {
    for (flag, meant) in
        [("threds", "threads"), ("allow_gids", "allow-gids"), ("Queue", "queue"), ("jsn", "json")]
    {
        assert_eq!(unknown_flag(flag), format!("there is no flag --{flag}; did you mean --{meant}?"));
    }
    assert_eq!(unknown_flag("colour"), "there is no flag --colour");
    assert_eq!(
        unknown_variable("WEAVE_THREDS"),
        "WEAVE_THREDS is not a setting of weaved; did you mean WEAVE_THREADS?"
    );
    let unknown = unknown_variable("WEAVE_SOMETHING_ELSE");
    assert_eq!(unknown, "WEAVE_SOMETHING_ELSE is not a setting of weaved; `weaved --help` lists them");
    for (key, meant) in [("allow-gids", "allow_gids"), ("WEAVE_QUEUE", "queue"), ("--threads", "threads")] {
        let (_folder, file) = toml(&format!("\"{key}\" = 1\n"));
        let error = resolve(&[], &[], Some(&file)).unwrap_err();
        assert!(error.contains(&format!("no setting {key:?}; did you mean {meant}?")), "{error}");
    }
}

#[test]
fn a_variable_that_is_no_text_is_not_passed_over() {
    use std::os::unix::ffi::OsStringExt;

    let vars = [(OsString::from("WEAVE_MODEL"), OsString::from_vec(b"/m\xff".to_vec()))];
    let error = Config::resolve(&[], vars.into_iter(), None).unwrap_err().to_string();
    assert_eq!(error, "WEAVE_MODEL: model is \"/m\u{fffd}\", must be text in UTF-8");
}
