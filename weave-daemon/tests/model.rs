//! Model files: what is found in their headers, and what is refused with which words.

#[path = "harness/allocator.rs"]
mod allocator;
#[path = "model/files.rs"]
mod files;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use allocator::Watched;
use files::*;
use weave_daemon::model::header::{Header, HeaderError, MAX_HEADER, MAX_TENSORS};
use weave_daemon::model::part::{Kind, Part, Tensors};
use weave_daemon::model::{Advice, ModelFiles, Profile, Stamps};

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

/// Counts what a thread has, and the most that it had.
#[global_allocator]
static ALLOCATOR: Watched = Watched {
    taken: |layout| {
        NOW.set(NOW.get().wrapping_add(layout.size()));
        MOST.set(MOST.get().max(NOW.get()));
    },
    given_back: |layout| NOW.set(NOW.get().wrapping_sub(layout.size())),
};

/// The most memory that something takes.
fn memory<T>(what: impl FnOnce() -> T) -> (usize, T) {
    // What other threads have freed of ours would show as an underflow.
    NOW.set(1 << 40);
    MOST.set(1 << 40);
    let result = what();
    (MOST.get() - (1 << 40), result)
}

/// Settings, and the files that they name.
fn set(parts: &[(&str, &Path)]) -> ModelFiles {
    let mut files = ModelFiles::default();
    for (setting, path) in parts {
        let place = match *setting {
            "model" => &mut files.model,
            "diffusion_model" => &mut files.diffusion_model,
            "clip_l" => &mut files.clip_l,
            "clip_g" => &mut files.clip_g,
            "t5xxl" => &mut files.t5xxl,
            "vae" => &mut files.vae,
            "taesd" => &mut files.taesd,
            other => panic!("{other}"),
        };
        *place = Some(path.to_path_buf());
    }
    files
}

fn found(parts: &[(&str, &Path)]) -> String {
    match set(parts).check() {
        Ok(found) => found.expect("a model is set").to_string(),
        Err(error) => panic!("{error}"),
    }
}

fn refused(parts: &[(&str, &Path)]) -> String {
    match set(parts).check() {
        Ok(found) => panic!("taken: {}", found.expect("a model is set")),
        Err(error) => error.to_string(),
    }
}

/// All parts, each in a file of its own.
struct Shelf {
    _folder: tempfile::TempDir,
    at: PathBuf,
}

impl Shelf {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { at: folder.path().to_owned(), _folder: folder }
    }

    fn put(&self, format: Format, name: &str, tensors: &[Tensor]) -> PathBuf {
        format.write(&self.at, name, tensors)
    }

    fn text(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.at.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

#[test]
fn every_set_up_is_recognised() {
    let shelf = Shelf::new();
    let [l, g, xxl] = [
        shelf.put(F16, "clip_l.safetensors", &clip_l()),
        shelf.put(F16, "clip_g.safetensors", &clip_g()),
        shelf.put(F8, "t5xxl.safetensors", &t5xxl()),
    ];
    let vae_file = shelf.put(BF16, "vae.safetensors", &vae(16, false));
    let diffusers = shelf.put(BF16, "vae-diffusers.safetensors", &vae(16, true));
    let tiny = shelf.put(F16, "taesd.safetensors", &taesd(16));
    let llama = shelf.put(Q5_K, "t5.gguf", &t5(4096, 10_240, 64, true));

    for (name, shape, words, profile) in [
        ("large", LARGE, "SD 3.5 Large or Large Turbo, 38 blocks", ("Stable Diffusion 3.5 Large", 28, 3.5)),
        (
            "turbo",
            LARGE,
            "SD 3.5 Large or Large Turbo, 38 blocks",
            ("Stable Diffusion 3.5 Large Turbo", 4, 1.0),
        ),
        ("medium", MEDIUM, "SD 3.5 Medium, 24 blocks", ("Stable Diffusion 3.5 Medium", 40, 4.5)),
        ("sd3", SD3_MEDIUM, "SD 3 Medium, 24 blocks", ("Stable Diffusion 3 Medium", 28, 7.0)),
    ] {
        // One file with everything.
        let all = shelf.put(F16, &format!("{name}-all"), &checkpoint(shape, true));
        assert_eq!(
            found(&[("model", &all)]),
            format!(
                "{words}, f16; CLIP-L, f16 in the checkpoint; CLIP-G, f16 in the checkpoint; T5-XXL, f16 in the checkpoint; the VAE, f16 in the checkpoint"
            )
        );
        let files = set(&[("model", &all)]);
        let Profile { name: called, toy, draws, defaults } = files.profile(files.check().unwrap().as_ref());
        assert_eq!((called, defaults.steps, defaults.cfg_scale), profile);
        assert_eq!((toy, draws, defaults.width, defaults.height), (false, None, 512, 512));
        // The diffusion model with the VAE, which is what is published, and encoders beside it.
        let main = shelf.put(F16, name, &checkpoint(shape, false));
        assert_eq!(
            found(&[("model", &main), ("clip_l", &l), ("clip_g", &g), ("t5xxl", &xxl)]),
            format!(
                "{words}, f16; CLIP-L, f16; CLIP-G, f16; T5-XXL, f8_e4m3; the VAE, f16 in the checkpoint"
            )
        );
        // TAESD comes before a VAE that is inside.
        assert_eq!(
            found(&[("model", &main), ("clip_g", &g), ("taesd", &tiny)]),
            format!("{words}, f16; CLIP-G, f16; TAESD, f16; no CLIP-L; no T5-XXL")
        );
        // All in parts; the names with and without the prefix of a checkpoint; formats mixed.
        for (format, kind) in [(F16, "f16"), (Q4_0, "q4_0"), (Q8_0, "q8_0")] {
            for prefix in ["", "model.diffusion_model."] {
                let parts = prefixed(prefix, mmdit(shape));
                let file = shelf.put(format, &format!("{name}-{kind}{prefix}"), &parts);
                assert_eq!(
                    found(&[("diffusion_model", &file), ("t5xxl", &llama), ("vae", &diffusers)]),
                    format!("{words}, {kind}; T5-XXL, q5_K; the VAE, bf16; no CLIP-L; no CLIP-G")
                );
            }
        }
        // Any encoders but none.
        for which in 1..8u8 {
            let mut parts = vec![("model", main.as_path()), ("vae", &vae_file)];
            for (bit, setting, file) in [(1, "clip_l", &l), (2, "clip_g", &g), (4, "t5xxl", &xxl)] {
                if which & bit > 0 {
                    parts.push((setting, file));
                }
            }
            let words = found(&parts);
            for (bit, name) in [(1, "CLIP-L"), (2, "CLIP-G"), (4, "T5-XXL")] {
                assert_eq!(words.contains(&format!("no {name}")), which & bit == 0, "{words}");
            }
        }
    }
    assert!(ModelFiles::default().check().unwrap().is_none(), "that is the demo model");
    let demo = ModelFiles::default().profile(None);
    assert_eq!((demo, demo.name, demo.toy), (Profile::DEMO, "demo model", true));
}

#[test]
fn a_file_of_another_kind_is_named() {
    let shelf = Shelf::new();
    let one = |name: &str, shape: &[u64]| vec![(name.to_owned(), shape.to_vec())];
    let main = shelf.put(F16, "medium", &checkpoint(MEDIUM, false));
    let l = shelf.put(F16, "l", &clip_l());
    let g = shelf.put(F16, "g", &clip_g());
    let t5_file = shelf.put(F16, "t5", &t5xxl());
    let vae_file = shelf.put(F16, "vae", &vae(16, false));
    let tiny = shelf.put(F16, "tiny", &taesd(16));
    let bare = shelf.put(F16, "bare", &mmdit(MEDIUM));
    let small_vae = shelf.put(F16, "sdxl-vae", &vae(4, false));
    let small_tiny = shelf.put(F16, "taesdxl", &taesd(4));
    let small_t5 = shelf.put(F16, "t5xl", &t5(2048, 5120, 32, false));
    let h = shelf.put(F16, "h", &clip(1024, 24));
    let empty = shelf.put(F16, "empty", &[]);
    let empty_gguf = shelf.put(Q8_0, "empty.gguf", &[]);
    let lora = shelf.put(F16, "lora", &one("transformer.x.lora_A.weight", &[4, 4]));
    let odd = shelf.put(F16, "odd", &one("x", &[1]));
    let sdxl = shelf.put(
        F16,
        "sdxl",
        &[
            one("model.diffusion_model.input_blocks.0.0.weight", &[320, 4, 3, 3]),
            one("conditioner.embedders.1.model.ln_final.bias", &[1280]),
        ]
        .concat(),
    );
    let sd1 = shelf.put(F16, "sd1", &one("model.diffusion_model.input_blocks.0.0.weight", &[320, 4, 3, 3]));
    let flux = shelf.put(F16, "flux", &one("double_blocks.0.img_attn.qkv.weight", &[9216, 3072]));
    let theirs =
        shelf.put(F16, "diffusers", &one("transformer_blocks.0.norm1_context.linear.weight", &[6, 1]));

    let is = |part: &str, path: &Path, words: &str| {
        let mut parts = vec![("model", main.as_path()), ("clip_l", &l)];
        if part == "model" || part == "diffusion_model" {
            parts.remove(0);
        }
        parts.retain(|(setting, _)| *setting != part);
        parts.push((part, path));
        let error = refused(&parts);
        let start = format!("{part}: {} is {words}", path.display());
        assert!(error.starts_with(&start), "{error}\n{start}");
    };
    is(
        "clip_l",
        &g,
        "CLIP-G (hidden size 1280), and CLIP-L (hidden size 768) is needed; set clip_g to it instead",
    );
    is(
        "clip_g",
        &l,
        "CLIP-L (hidden size 768), and CLIP-G (hidden size 1280) is needed; set clip_l to it instead",
    );
    is("clip_l", &vae_file, "a VAE, and CLIP-L (hidden size 768) is needed; set vae to it instead");
    is("clip_l", &h, "a CLIP text encoder with hidden size 1024, and CLIP-L");
    is("clip_l", &t5_file, "T5-XXL, and CLIP-L (hidden size 768) is needed; set t5xxl to it instead");
    is("clip_l", &empty, "without any tensor, and CLIP-L (hidden size 768) is needed; download it again");
    is(
        "clip_l",
        &empty_gguf,
        "without any tensor, and CLIP-L (hidden size 768) is needed; download it again",
    );
    is(
        "clip_l",
        &main,
        "an SD 3 checkpoint, and CLIP-L (hidden size 768) is needed in a file of its own; get clip_l.safetensors",
    );
    is(
        "clip_g",
        &bare,
        "the diffusion model of SD 3 alone, and CLIP-G (hidden size 1280) is needed in a file of its own; get",
    );
    is("t5xxl", &l, "CLIP-L (hidden size 768), and T5-XXL (hidden size 4096) is needed; set clip_l");
    is(
        "t5xxl",
        &small_t5,
        "a T5 text encoder with hidden size 2048 and 32128 words (T5-XXL has 4096 and 32128)",
    );
    is("vae", &small_vae, "a VAE with 4 latent channels, as SD 1, SD 2 and SDXL have it (SD 3.5 has 16)");
    is("vae", &tiny, "TAESD, and a VAE with 16 latent channels is needed; set taesd to it instead");
    is(
        "taesd",
        &small_tiny,
        "a TAESD with 4 latent channels, as SD 1, SD 2 and SDXL have it (SD 3.5 has 16)",
    );
    is("taesd", &vae_file, "a VAE, and a TAESD with 16 latent channels is needed; set vae to it instead");
    let supported = "; weaved runs SD 3.5 Large, Large Turbo and Medium";
    for setting in ["model", "diffusion_model"] {
        is(setting, &sdxl, &format!("an SDXL model{supported}"));
        is(setting, &sd1, &format!("an SD 1 or SD 2 model{supported}"));
        is(setting, &flux, &format!("a Flux model{supported}"));
        is(setting, &theirs, "an SD 3 model under the names of diffusers, which the engine doesn't know");
        is(setting, &lora, &format!("a LoRA{supported}"));
        is(setting, &empty, "without any tensor; download it again");
        is(setting, &odd, &format!("of no kind that weaved knows{supported}"));
        is(setting, &l, "CLIP-L (hidden size 768) and no diffusion model; set clip_l to it instead");
    }
    is("model", &bare, "the diffusion model of SD 3 alone; set diffusion_model to it instead");

    // Fitting together.
    let error = refused(&[("model", &main)]);
    assert!(error.contains("has no text encoder; set clip_l, clip_g or t5xxl"), "{error}");
    for file in [&bare, &main] {
        let error = refused(&[("diffusion_model", file), ("clip_l", &l)]);
        assert!(error.contains("has no decoder; set vae, or taesd"), "{error}");
    }
    let only = shelf.put(F16, "only", &prefixed("model.diffusion_model.", mmdit(LARGE)));
    let error = refused(&[("model", &only), ("clip_l", &l)]);
    assert!(error.contains("has no decoder; set vae, or taesd"), "{error}");
}

#[test]
fn a_part_that_lacks_something_or_has_it_in_another_shape_is_named() {
    let shelf = Shelf::new();
    let main = shelf.put(F16, "medium", &checkpoint(MEDIUM, false));
    let says = |file: &Path, tensors: &str, setting: &str, words: &[&str]| {
        let error = refused(&[("model", &main), (setting, file)]);
        for words in words {
            assert!(error.contains(words), "{tensors}: {error}");
        }
        assert!(error.starts_with(&format!("{setting}: {} can't be used as ", file.display())), "{error}");
    };
    let name = "text_model.encoder.layers.7.mlp.fc1.weight";
    let mut clip = clip_l();
    clip.retain(|(its, _)| its != name);
    says(
        &shelf.put(F16, "lacks", &clip),
        "one is missing",
        "clip_l",
        &["as CLIP-L: the tensor", name, "is missing"],
    );
    let mut clip = clip_l();
    clip.iter_mut().find(|(its, _)| its == name).unwrap().1 = vec![3072, 769];
    says(
        &shelf.put(F16, "shape", &clip),
        "a shape",
        "clip_l",
        &[name, "has the shape [3072, 769], and [3072, 768] is needed"],
    );
    let mut few = t5xxl();
    few.truncate(100);
    says(
        &shelf.put(F16, "model-00001-of-00002.safetensors", &few),
        "one piece",
        "t5xxl",
        &["as T5-XXL: 119 of its 219 tensors are missing", "one piece of several"],
    );
    says(
        &shelf.put(Format::Safetensors("I32", 4), "numbers", &clip_l()),
        "a type",
        "clip_l",
        &["is of the type i32, of which the engine makes no weights"],
    );
    let mut scaled = t5xxl();
    scaled.push(("encoder.block.0.layer.0.SelfAttention.q.scale_weight".to_owned(), vec![1]));
    says(
        &shelf.put(F8, "scaled", &scaled),
        "scaled",
        "t5xxl",
        &["\"scaled\" fp8", "get fp16, plain fp8 or GGUF"],
    );
    // The diffusion model.
    let vae_file = shelf.put(F16, "vae", &vae(16, false));
    let l = shelf.put(F16, "l", &clip_l());
    for (i, (shape, words)) in [
        ((40, 2560, 0, 192, true), "it has 40 blocks; SD 3.5 Medium has 24 and Large has 38"),
        ((4_000_000_000, 1536, 0, 192, true), "it has 4000000000 blocks"),
        ((24, 1535, 0, 192, true), "its hidden size is 1535, which its 24 heads can't share"),
        (
            (24, 1536, 0, 64, true),
            "its pos_embed has 4096 positions: a square, of at least 128×128, is needed",
        ),
        ((12, 768, 0, 192, true), "the tensor joint_blocks.0.context_block.attn.ln_q.weight"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut tensors = mmdit(if shape.0 > 100 { (24, shape.1, shape.2, shape.3, shape.4) } else { shape });
        if shape.0 > 100 {
            tensors.push((format!("joint_blocks.{}.x_block.mlp.fc1.bias", shape.0 - 1), vec![1]));
        }
        let file = shelf.put(F16, &i.to_string(), &tensors);
        let error = refused(&[("diffusion_model", &file), ("clip_l", &l), ("vae", &vae_file)]);
        assert!(error.contains(words), "{error}");
    }
    // What is inside of a checkpoint counts as well, unless something is set in its place.
    let mut broken = checkpoint(MEDIUM, true);
    broken.retain(|(name, _)| !name.ends_with("text_model.final_layer_norm.bias"));
    let broken = shelf.put(F16, "broken", &broken);
    let error = refused(&[("model", &broken)]);
    assert!(
        error.contains("can't be used as CLIP-L: the tensor text_model.final_layer_norm.bias"),
        "{error}"
    );
    let g = shelf.put(F16, "g", &clip_g());
    found(&[("model", &broken), ("clip_l", &l), ("clip_g", &g)]);
}

/// Prefixes that programs put before the names of a part, and one that none does.
const PREFIXES: [&str; 12] = [
    "",
    "model.diffusion_model.",
    "unet.",
    "transformer.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.t5xxl.transformer.",
    "clip_l.transformer.",
    "conditioner.embedders.0.transformer.",
    "te3.",
    "first_stage_model.",
    "tae.",
    "something.else.",
];

/// What the settings are after somebody did as an error says.
fn follow(
    advice: Advice,
    from: &str,
    files: &BTreeMap<&'static str, PathBuf>,
    good: impl Fn(&str) -> PathBuf,
) -> BTreeMap<&'static str, PathBuf> {
    let mut files = files.clone();
    match advice {
        Advice::Move(to) => {
            let file = files.remove(from).unwrap();
            if to == "model" || to == "diffusion_model" {
                files.remove("model");
                files.remove("diffusion_model");
            }
            files.insert(to, file);
        }
        Advice::Replace(setting) => _ = files.insert(setting, good(setting)),
        Advice::LeaveOut(setting) => _ = files.remove(setting),
        Advice::Add(settings) => _ = files.insert(settings[0], good(settings[0])),
    }
    files
}

/// Whatever file is set in whatever place: who does as each error says comes to a model that runs, and never to where
/// they have been before.
#[test]
fn every_advice_leads_to_a_model_that_runs() {
    let shelf = Shelf::new();
    let one = |name: &str, shape: &[u64]| vec![(name.to_owned(), shape.to_vec())];
    let good: BTreeMap<&'static str, PathBuf> = [
        ("model", checkpoint(MEDIUM, false)),
        ("diffusion_model", mmdit(MEDIUM)),
        ("clip_l", clip_l()),
        ("clip_g", clip_g()),
        ("t5xxl", t5xxl()),
        ("vae", vae(16, false)),
        ("taesd", taesd(16)),
    ]
    .into_iter()
    .map(|(name, tensors)| (name, shelf.put(F16, &format!("good-{name}"), &tensors)))
    .collect();
    let mut tried = vec![shelf.at.join("missing"), shelf.at.clone(), shelf.text("text", "no model")];
    tried.extend(good.values().cloned());
    let whole = |prefix: &str| [prefixed(prefix, mmdit(MEDIUM)), prefixed("vae.", vae(16, true))].concat();
    for (name, tensors) in [
        ("everything", checkpoint(MEDIUM, true)),
        ("unet-and-vae", whole("unet.")),
        ("bare-and-vae", whole("")),
        ("two-encoders", [prefixed("a.", clip_l()), prefixed("b.", clip_g())].concat()),
        ("empty", vec![]),
        ("odd", one("x", &[1])),
        ("lora", one("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", &[4, 4])),
        ("lora2", one("lora_unet_joint_blocks_0_x_block.lora_down.weight", &[4, 4])),
        ("control", one("controlnet_blocks.0.weight", &[4, 4])),
        ("sdxl", one("model.diffusion_model.input_blocks.0.0.weight", &[320, 4, 3, 3])),
        ("flux", one("double_blocks.0.img_attn.qkv.weight", &[9216, 3072])),
        ("sdxl-vae", vae(4, false)),
        ("small-t5", t5(2048, 5120, 32, false)),
        ("h", clip(1024, 24)),
        ("large-of-others", mmdit((40, 2560, 0, 192, true))),
        ("few", t5xxl().into_iter().skip(100).collect()),
        ("language", one("token_embd.weight", &[128_256, 4096])),
        ("open-clip", one("model.token_embedding.weight", &[49_408, 1280])),
    ] {
        tried.push(shelf.put(F16, name, &tensors));
    }
    for (part, tensors) in [
        ("mmdit", mmdit(MEDIUM)),
        ("clip_l", clip_l()),
        ("clip_g", clip_g()),
        ("t5", t5xxl()),
        ("vae", vae(16, false)),
        ("taesd", taesd(16)),
    ] {
        for (i, prefix) in PREFIXES.into_iter().enumerate() {
            let format = if i % 2 == 0 { F16 } else { Q4_0 };
            tried.push(shelf.put(format, &format!("{part}-{prefix}"), &prefixed(prefix, tensors.clone())));
        }
    }
    let settings = ["model", "diffusion_model", "clip_l", "clip_g", "t5xxl", "vae", "taesd"];
    let starts: Vec<_> = tried.iter().flat_map(|path| settings.map(|setting| (path, setting))).collect();
    let good = &good;
    let steps = std::thread::scope(|scope| {
        let some = starts.chunks(starts.len().div_ceil(4)).map(|some| {
            scope.spawn(|| some.iter().map(|(path, setting)| steps(path, setting, good)).collect::<Vec<_>>())
        });
        let some: Vec<_> = some.collect();
        some.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let right = steps.iter().filter(|steps| **steps == 0).count();
    assert!(right > 10 && steps.len() >= 600, "{right} of {} were right", steps.len());
}

/// How many errors there are on the way from this file in this place to a model that runs.
fn steps(path: &Path, setting: &'static str, good: &BTreeMap<&'static str, PathBuf>) -> usize {
    let is_main = |name: &str| name == "model" || name == "diffusion_model";
    let mut files: BTreeMap<&str, PathBuf> =
        ["model", "clip_l"].into_iter().map(|name| (name, good[name].clone())).collect();
    files.retain(|name, _| !(is_main(setting) && is_main(name)));
    files.insert(setting, path.to_owned());
    let mut been = vec![files.clone()];
    loop {
        let parts: Vec<_> = files.iter().map(|(name, path)| (*name, path.as_path())).collect();
        let Err(error) = set(&parts).check() else { return been.len() - 1 };
        let (words, advice) = (error.to_string(), error.advice());
        let is_told = match advice {
            Advice::Move(to) => words.contains(&format!("set {to} to it instead")),
            Advice::Replace(it) | Advice::LeaveOut(it) => words.contains(it),
            Advice::Add(of) => of.iter().all(|it| words.contains(it)),
        };
        let last = words.rsplit([';', ':']).find(|part| part.len() > 12).unwrap();
        let ends = [
            "set ",
            "get ",
            "name ",
            "download ",
            "take ",
            "leave ",
            "TAESD from",
            "safetensors from",
            "the file in",
        ];
        assert!(is_told && ends.iter().any(|word| last.contains(word)), "{advice:?}: {words}");
        files = follow(advice, words.split(':').next().unwrap(), &files, |setting| good[setting].clone());
        assert!(!been.contains(&files), "{setting} {}: in a circle: {words}", path.display());
        been.push(files.clone());
    }
}

/// The names that the engine knows in a checkpoint only: such a file is given to it as one.
#[test]
fn a_diffusion_model_is_taken_under_each_prefix_in_both_settings() {
    let shelf = Shelf::new();
    let l = shelf.put(F16, "l", &clip_l());
    let tiny = shelf.put(F16, "taesd", &taesd(16));
    for format in [F16, Q4_0] {
        for prefix in ["model.diffusion_model.", "diffusion_model.", "unet.", "transformer."] {
            let file = shelf.put(format, prefix, &prefixed(prefix, mmdit(MEDIUM)));
            let parts = |setting: &'static str| [(setting, file.as_path()), ("clip_l", &l), ("taesd", &tiny)];
            assert_eq!(found(&parts("model")), found(&parts("diffusion_model")), "{prefix}");
            let given = set(&parts("diffusion_model")).for_engine();
            let as_it_is = prefix == "model.diffusion_model.";
            assert_eq!(
                (given.diffusion_model.is_some(), given.model.is_some()),
                (as_it_is, !as_it_is),
                "{prefix}"
            );
            assert_eq!(given.clip_l.as_deref(), Some(l.as_path()));
        }
    }
}

/// An encoder or a VAE under a prefix that the engine doesn't take: what it is, what its names begin with, and that it
/// is right without.
#[test]
fn names_that_the_engine_does_not_know_are_named() {
    let shelf = Shelf::new();
    let main = shelf.put(F16, "main", &mmdit(MEDIUM));
    let good_l = shelf.put(F16, "l", &clip_l());
    for (setting, tensors, prefix) in [
        ("clip_l", clip_l(), "clip_l.transformer."),
        ("clip_l", clip_l(), "cond_stage_model.transformer."),
        ("clip_l", clip_l(), "conditioner.embedders.0.transformer."),
        ("clip_l", clip_l(), "transformer."),
        ("clip_g", clip_g(), "clip_g.transformer."),
        ("t5xxl", t5xxl(), "t5xxl.transformer."),
        ("t5xxl", t5xxl(), "te3."),
        ("vae", vae(16, false), "first_stage_model."),
        ("taesd", taesd(16), "taesd."),
    ] {
        let file = shelf.put(F16, "file", &prefixed(prefix, tensors.clone()));
        let vae_file = shelf.put(F16, "vae-file", &vae(16, false));
        let with = |path: &Path| {
            let mut parts = BTreeMap::from([("clip_l", good_l.clone()), ("vae", vae_file.clone())]);
            parts.insert("diffusion_model", main.clone());
            parts.insert(setting, path.to_owned());
            parts
        };
        let parts = with(&file);
        let parts: Vec<_> = parts.iter().map(|(name, path)| (*name, path.as_path())).collect();
        let error = refused(&parts);
        let words = format!("or take {prefix:?} away from the front of all names");
        assert!(error.contains(&words) && error.contains("the name of its tensor"), "{error}");
        let parts = with(&shelf.put(F16, "renamed", &tensors));
        let parts: Vec<_> = parts.iter().map(|(name, path)| (*name, path.as_path())).collect();
        found(&parts);
    }
}

/// Two errors: a file that is damaged is worth another download, one that is something else is not.
#[test]
fn broken_and_unsuitable_are_two_things() {
    let shelf = Shelf::new();
    let l = shelf.put(F16, "l", &clip_l());
    let one = |name: &str, shape: &[u64]| vec![(name.to_owned(), shape.to_vec())];
    let json = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut swapped = Q4_0.front(&clip_l()).bytes;
    swapped[4..8].copy_from_slice(&[0, 0, 0, 3]);
    let mut withdrawn = Q4_0.front(&one("a.weight", &[32, 32])).bytes;
    let at = withdrawn.windows(8).position(|eight| eight == b"a.weight").unwrap() + 8 + 4 + 16;
    withdrawn[at] = 31;
    for (path, is_broken) in [
        (shelf.text("empty", ""), true),
        (shelf.text("text", "no model"), true),
        (shelf.text("cut", &F16.front(&clip_l()).bytes[..1000]), true),
        (shelf.put(F16, "nothing", &[]), true),
        (shelf.put(F16, "few", &mmdit(MEDIUM).into_iter().skip(9).collect::<Vec<_>>()), true),
        (shelf.at.join("missing"), true),
        (shelf.text("pickle", b"\x80\x02}q\0(X\x04\0\0\0"), false),
        (shelf.text("swapped", swapped), false),
        (shelf.text("withdrawn", withdrawn), false),
        (shelf.text("type", json("{\"a\":{\"dtype\":\"F4\",\"shape\":[],\"data_offsets\":[0,0]}}")), false),
        (shelf.put(F16, "flux", &one("double_blocks.0.img_attn.qkv.weight", &[9216, 3072])), false),
        (shelf.put(F16, "lora", &one("x.lora_A.weight", &[4, 4])), false),
        (shelf.put(F16, "part", &clip_g()), false),
        (shelf.put(Format::Safetensors("I32", 4), "numbers", &mmdit(MEDIUM)), false),
    ] {
        let parts = [("diffusion_model", path.as_path()), ("clip_l", &l), ("vae", &l)];
        let error = set(&parts[..2]).check().unwrap_err();
        assert_eq!(error.is_broken(), is_broken, "{error}");
        let again = error.to_string().contains("download");
        assert!(again == is_broken || path.ends_with("missing"), "{error}");
    }
}

/// A file is the same one as long as nobody has written to it or put another into its place.
#[test]
fn a_file_that_has_changed_is_noticed_once() {
    let shelf = Shelf::new();
    let main = shelf.put(F16, "main", &mmdit(MEDIUM));
    let l = shelf.put(F16, "l", &clip_l());
    let files = set(&[("diffusion_model", &main), ("clip_l", &l)]);
    let mut stamps = Stamps::default();
    assert!(stamps.look_again(&files).is_empty(), "nothing is known of them yet");
    assert!(stamps.look_again(&files).is_empty());
    let changed = [format!("clip_l: {}", l.display())];
    fs::rename(shelf.put(F16, "same-size", &clip_l()), &l).unwrap();
    assert_eq!(stamps.look_again(&files), changed);
    assert!(stamps.look_again(&files).is_empty());
    // Written in place, by no byte longer.
    let file = fs::File::options().write(true).open(&l).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(stamps.look_again(&files), changed);
    fs::remove_file(&l).unwrap();
    assert_eq!(stamps.look_again(&files), changed);
    shelf.put(F16, "l", &clip_l());
    assert_eq!(stamps.look_again(&files), changed);
    // A file that is set anew is no change of one.
    let other = set(&[("diffusion_model", &main), ("clip_l", &main)]);
    assert!(stamps.look_again(&other).is_empty());
}

/// A header may be long, and what is said of it may not.
#[test]
fn what_is_said_of_a_file_is_short() {
    let shelf = Shelf::new();
    let l = shelf.put(F16, "l", &clip_l());
    let long = "\u{34f}".repeat(10 << 20);
    for (name, entry) in [
        ("dtype", format!("{{\"a\":{{\"dtype\":\"{long}\",\"shape\":[1],\"data_offsets\":[0,2]}}}}")),
        ("shape", format!("{{\"a\":{{\"dtype\":\"F16\",\"shape\":\"{long}\",\"data_offsets\":[0,2]}}}}")),
        ("name", format!("{{\"{long}\":{{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]}}}}")),
    ] {
        let path = shelf.text(name, [&(entry.len() as u64).to_le_bytes(), entry.as_bytes()].concat());
        let error = refused(&[("diffusion_model", &path), ("clip_l", &l)]);
        let is_named = error.contains("has a damaged header (") || error.contains("is of the type");
        assert!(is_named && error.len() < 4000, "{name}: {}", error.len());
        assert!(error.chars().all(weave_core::text::is_shown), "{name}: {error}");
    }
}

#[test]
fn what_is_no_model_is_named() {
    let shelf = Shelf::new();
    let l = shelf.put(F16, "l", &clip_l());
    let front = F16.front(&clip_l());
    let gguf_front = Q4_0.front(&clip_l());
    let cut = |name: &str, front: &Front, len: u64| {
        let path = shelf.text(name, front.bytes.get(..usize::try_from(len).unwrap()).unwrap_or(&front.bytes));
        fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        path
    };
    let cut_off = |has: u64, needs: u64| format!("is cut off: it has {has} bytes and needs {needs}");
    let json = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut old = gguf_front.bytes.clone();
    old[4] = 1;
    let mut swapped = gguf_front.bytes.clone();
    swapped[4..8].copy_from_slice(&[0, 0, 0, 3]);
    let entry = |shape: &str, offsets: &str| {
        json(&format!("{{\"a\":{{\"dtype\":\"F16\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}"))
    };
    for (path, words) in [
        (shelf.text("empty", ""), "is empty: download it again".to_owned()),
        (shelf.text("page", "\n<!DOCTYPE html><html>"), "is a web page and no model".to_owned()),
        (shelf.text("page2", "<html>you need to log in</html>"), "accept the licence".to_owned()),
        (
            shelf.text(
                "lfs",
                "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5107104966\n",
            ),
            "is a pointer of git-lfs and not the file that it stands for (5107104966 bytes)".to_owned(),
        ),
        (shelf.text("zip", "PK\x03\x04\0\0\0\0\0\0"), "is a PyTorch file".to_owned()),
        (shelf.text("pickle", b"\x80\x02}q\0(X\x04\0\0\0"), "get it as safetensors or GGUF".to_owned()),
        (
            shelf.text("text", "Access to this model is restricted."),
            "is neither safetensors nor GGUF but text that begins with \"Access to".to_owned(),
        ),
        (shelf.text("png", b"\x89PNG\r\n\x1a\n\0\0\0"), "is neither safetensors nor GGUF".to_owned()),
        (cut("cut", &front, front.len - 1), cut_off(front.len - 1, front.len)),
        (cut("cut2", &front, 100), cut_off(100, front.bytes.len() as u64)),
        (cut("cut3", &gguf_front, gguf_front.len - 64), "is cut off".to_owned()),
        (cut("cut4", &gguf_front, 100), "is cut off".to_owned()),
        (cut("cut5", &gguf_front, 6), cut_off(6, 8)),
        (shelf.text("v1", old), "GGUF's version is 1, and the engine reads 2 and 3".to_owned()),
        (shelf.text("swapped", swapped), "another order of bytes".to_owned()),
        (shelf.text("type", json("{\"a\":{\"dtype\":\"F4\",\"shape\":[],\"data_offsets\":[0,0]}}")), "\"F4\"".to_owned()),
        (shelf.text("six", entry("[1,1,1,1,1,1]", "[0,2]")), "at most 5 dimensions".to_owned()),
        (shelf.text("offsets", entry("[2]", "[0,5]")), "\"a\" lies at 0 to 5 and takes 4 bytes".to_owned()),
        (shelf.text("back", entry("[2]", "[4,0]")), "\"a\" lies at 4 to 0 and takes 4 bytes".to_owned()),
        (
            shelf.text("beyond", entry("[2]", "[1000,1004]")),
            cut_off(68, 1072),
        ),
        (
            shelf.text("huge", entry("[4294967296,4294967296]", "[0,5]")),
            "\"a\" has the impossible shape [4294967296, 4294967296]".to_owned(),
        ),
        (shelf.text("negative", entry("[-1]", "[0,5]")), "damaged header (invalid value".to_owned()),
        (
            shelf.text("twice", json("{\"a\":{\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[0,0]},\"a\":{\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[0,0]}}")),
            "two tensors have the name \"a\"".to_owned(),
        ),
        (
            // What a terminal would obey.
            shelf.text("escape", json("{\"\\u001b[31m.scale_weight\":{\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[0,0]}}")),
            "a tensor has the name \"\\u{1b}[31m.scale_weight\", with characters that can't be shown".to_owned(),
        ),
        (shelf.text("deep", json(&format!("{{\"__metadata__\":{}", "[".repeat(5000)))), "EOF while parsing".to_owned()),
        (shelf.text("no-json", json("{\"a\":}")), "has a damaged header (expected value".to_owned()),
    ] {
        let error = refused(&[("diffusion_model", &path), ("clip_l", &l)]);
        assert!(error.contains(&words), "{error}\n{words}");
        assert!(error.starts_with(&format!("diffusion_model: {} ", path.display())), "{error}");
    }
}

/// Each that is no file in its own words: a pipe has no file in it that could be meant.
#[test]
fn what_is_no_file_is_named() {
    let shelf = Shelf::new();
    let l = shelf.put(F16, "l", &clip_l());
    let at = |name: &str| shelf.at.join(name);
    let fifo = at("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let link = |name: &str, to: &str| {
        std::os::unix::fs::symlink(to, at(name)).unwrap();
        at(name)
    };
    for (path, words) in [
        (shelf.at.clone(), "is a folder; name the file in it that is meant"),
        (fifo, "is a pipe, which can be read only once, and a model is read several times; name a file"),
        (link("to-fifo", "fifo"), "is a pipe, which can be read only once"),
        (at("socket"), "is a socket; name a file"),
        (PathBuf::from("/dev/null"), "is a device; name a file"),
        (link("loop", "loop"), ": its symbolic links lead round in a circle; name the file itself"),
        (link("nowhere", "gone"), "is a link to gone, where nothing is; download the model again"),
        (at("missing"), ": there is no such file; set vae to one that is there"),
        (l.join("inside"), "Not a directory"),
        (shelf.text("empty", ""), "is empty: download it again"),
    ] {
        let error = refused(&[("model", &l), ("vae", &path)]);
        // The files are opened in the order of the settings, and all before one is judged.
        assert!(error.starts_with("vae: ") && error.contains(words), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}

/// The table of cards in docs/models.md follows from the shapes: nobody here has the files.
#[test]
fn the_figures_in_the_documentation_are_those_of_the_check() {
    let shelf = Shelf::new();
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/models.md")).unwrap();
    let mut rows = 0;
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [card, what, said] = cells[..] else { continue };
        let Some(said) = said.strip_suffix(" GB") else { continue };
        rows += 1;
        let mut files = ModelFiles::default();
        for part in what.split(", ") {
            let (name, format) = match part.rsplit_once(' ') {
                Some((name, "f16")) => (name, F16),
                Some((name, "fp8")) => (name, F8),
                Some((name, "q8_0")) => (name, Q8_0),
                Some((name, "q4_0")) => (name, Q4_0),
                Some((name, "q5_K")) => (name, Q5_K),
                _ => (part, F16),
            };
            let (place, tensors) = match name {
                "Large" => (&mut files.diffusion_model, mmdit(LARGE)),
                "Medium" => (&mut files.diffusion_model, mmdit(MEDIUM)),
                "CLIP-L" => (&mut files.clip_l, clip_l()),
                "CLIP-G" => (&mut files.clip_g, clip_g()),
                "T5" => (&mut files.t5xxl, t5xxl()),
                "VAE" => (&mut files.vae, vae(16, false)),
                "TAESD" => (&mut files.taesd, taesd(16)),
                other => panic!("{other:?} in {line}"),
            };
            *place = Some(shelf.put(format, name, &tensors));
        }
        let bytes = files.check().unwrap_or_else(|error| panic!("{card}: {error}")).unwrap().bytes();
        let rounded = (bytes + 50_000_000) / 100_000_000;
        assert_eq!(said, format!("{}.{}", rounded / 10, rounded % 10), "{line}");
        let has: u64 = card.trim_end_matches(" GB").parse().unwrap();
        assert!(bytes < has << 30, "{line}");
    }
    assert!(rows >= 5, "{rows}");
}

/// Everything that is done with the bytes of a file.
fn judge(bytes: &[u8], len: u64) -> Result<(), HeaderError> {
    let header = Header::read(bytes, len)?;
    drop(Kind::of(header.tensors()).to_string());
    for setting in ["model", "diffusion_model", "clip_l", "clip_g", "t5xxl", "vae", "taesd"] {
        let mut parts = BTreeMap::<Part, Tensors<'_>>::new();
        for (name, tensor) in header.tensors() {
            if let Some((part, its)) = Part::of(setting, name) {
                parts.entry(part).or_default().insert(its, (name, tensor));
            }
        }
        for (part, tensors) in parts {
            drop(part.check(&tensors).map(|content| content.to_string()).map_err(|fault| fault.to_string()));
        }
    }
    Ok(())
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap()
    }
}

#[test]
fn a_header_with_anything_in_it_does_no_harm() {
    let mut bases = Vec::new();
    // Small ones, so that there is time for many changes.
    let small_mmdit: Vec<_> = mmdit(MEDIUM).into_iter().step_by(11).collect();
    for tensors in [taesd(16), small_mmdit, clip_l().into_iter().step_by(7).collect()] {
        bases.push(F16.front(&tensors));
        bases.push(Q4_0.front(&tensors));
    }
    let (mut read, mut refused) = (0, 0);
    for (seed, base) in bases.iter().enumerate() {
        let mut numbers = Numbers(seed as u64);
        for _ in 0..1500 {
            let mut bytes = base.bytes.clone();
            let mut len = base.len;
            for _ in 0..1 + numbers.below(4) {
                let at = numbers.below(bytes.len());
                match numbers.below(8) {
                    0 => bytes[at] ^= 1 << numbers.below(8),
                    1 => bytes[at] = *b"0123456789[]{},:\" eE-.\0\xff".get(numbers.below(24)).unwrap(),
                    2 => bytes.truncate(at + 1),
                    3 => len = numbers.next() >> numbers.below(64),
                    4 | 5 => {
                        let extreme = match numbers.below(5) {
                            0 => u64::MAX,
                            1 => 1 << 63,
                            2 => u64::from(u32::MAX),
                            3 => MAX_HEADER,
                            _ => numbers.next() >> numbers.below(64),
                        };
                        for (place, byte) in bytes.iter_mut().skip(at).zip(extreme.to_le_bytes()) {
                            *place = byte;
                        }
                    }
                    6 => {
                        let digits = (numbers.next() >> numbers.below(64)).to_string();
                        bytes.splice(at..at, digits.bytes());
                    }
                    _ => {
                        let end = bytes.len().min(at + numbers.below(200));
                        let again = bytes[at..end].to_vec();
                        let to = numbers.below(bytes.len());
                        bytes.splice(to..to, again);
                    }
                }
            }
            let (took, result) = memory(|| judge(&bytes, len));
            match result {
                Ok(()) => read += 1,
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
            // A safetensors header is taken into memory at once, if the file claims to be that long.
            let most = 16 * bytes.len() + (2 << 20) + usize::try_from(MAX_HEADER).unwrap();
            assert!(took <= most, "{took} bytes for a file of {}", bytes.len());
        }
    }
    assert!(read > 200 && refused > 200, "{read} were read, {refused} refused: too much of one");
}

#[test]
fn the_largest_header_takes_a_bounded_amount_of_memory() {
    let limit = 4 * usize::try_from(MAX_HEADER).unwrap();
    let mut full = Vec::new();
    // As many tensors as there can be, and one more.
    for (count, fits) in [(MAX_TENSORS, true), (MAX_TENSORS + 1, false)] {
        let name = |i| format!("joint_blocks.{i}.x{}", "y".repeat(200));
        let tensors: Vec<_> = (0..count).map(|i| (name(i), vec![1])).collect();
        for format in [F16, Q4_0] {
            let front = format.front(&tensors);
            let (took, result) = memory(|| Header::read(&front.bytes[..], front.len).map(drop));
            assert!(took <= limit, "{took}");
            assert_eq!(result.is_ok(), fits);
            full.push(front);
        }
    }
    let (took, _) = memory(|| judge(&full[0].bytes, full[0].len));
    assert!(took <= 2 * limit, "{took}");
    // A file of holes, and a header that claims all of it.
    for claim in [MAX_HEADER - 8, MAX_HEADER, u64::from(u32::MAX)] {
        let start = [&claim.to_le_bytes()[..], b"{"].concat();
        let (took, result) = memory(|| Header::read(&start[..], 1 << 50).map(drop));
        assert!(result.is_err() && took <= limit, "{took}");
    }
}
