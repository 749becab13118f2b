//! What the check of model files takes, the engine loads, and what one of them refuses, the other does too.
//!
//! The engine looks at headers alone when it makes a context, as the check does, so files of holes serve
//! both.
#![cfg(feature = "sdcpp")]

#[path = "model/files.rs"]
mod files;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use files::*;
use weave_daemon::demo;
use weave_daemon::engine::sdcpp::Sdcpp;
use weave_daemon::engine::tuning::Tuning;
use weave_daemon::model::ModelFiles;
use weave_daemon::scoreboard::Control;

/// There is one engine in a process.
static ENGINE: Mutex<()> = Mutex::new(());

fn loads(model: &ModelFiles) -> bool {
    let _one = ENGINE.lock().unwrap();
    Sdcpp::load(model.clone(), Tuning::default(), 1, &Control::none()).is_ok()
}

fn agree(model: &ModelFiles, usable: bool, what: &str) {
    match model.check() {
        Ok(_) => assert!(usable, "the check takes it {what}"),
        Err(error) => assert!(!usable, "the check refuses it {what}: {error}"),
    }
    assert_eq!(loads(model), usable, "the engine {what}");
}

struct Shelf(tempfile::TempDir);

impl Shelf {
    fn put(&self, format: Format, name: &str, tensors: &[Tensor]) -> Option<PathBuf> {
        Some(format.write(self.0.path(), name, tensors))
    }
}

fn shelf() -> Shelf {
    Shelf(tempfile::tempdir().unwrap())
}

#[test]
fn every_set_up_loads() {
    let shelf = shelf();
    let clip_l_file = shelf.put(F16, "l", &clip_l());
    let clip_g_file = shelf.put(F16, "g", &clip_g());
    let t5_file = shelf.put(F8, "t5", &t5xxl());
    let t5_gguf = shelf.put(Q5_K, "t5.gguf", &t5(4096, 10_240, 64, true));
    let vae_file = shelf.put(F16, "vae", &vae(16, false));
    let vae_diffusers = shelf.put(BF16, "vae-diffusers", &vae(16, true));
    let tiny = shelf.put(F16, "taesd", &taesd(16));
    let none = ModelFiles::default();
    for (name, shape) in [("Large", LARGE), ("Medium", MEDIUM), ("SD 3 Medium", SD3_MEDIUM)] {
        let all = shelf.put(F16, &format!("{name}-all"), &checkpoint(shape, true));
        agree(&ModelFiles { model: all.clone(), ..none.clone() }, true, &format!("{name} in one file"));
        let all_gguf = shelf.put(Q8_0, &format!("{name}-all.gguf"), &checkpoint(shape, true));
        agree(&ModelFiles { model: all_gguf, ..none.clone() }, true, &format!("{name} in one GGUF file"));
        let bare = shelf.put(Q4_0, &format!("{name}-bare"), &mmdit(shape));
        let parts = ModelFiles { diffusion_model: bare, t5xxl: t5_gguf.clone(), ..none.clone() };
        agree(&ModelFiles { vae: vae_file.clone(), ..parts.clone() }, true, &format!("{name} in parts"));
        if shape != MEDIUM {
            continue;
        }
        // Each set of encoders, and each decoder.
        let main = shelf.put(F16, name, &checkpoint(shape, false));
        for which in 0..8 {
            let part = |bit: u8, file: &Option<PathBuf>| file.clone().filter(|_| which & bit > 0);
            let files = ModelFiles {
                model: main.clone(),
                clip_l: part(1, &clip_l_file),
                clip_g: part(2, &clip_g_file),
                t5xxl: part(4, &t5_file),
                ..none.clone()
            };
            agree(&files, which > 0, &format!("{name} with the encoders {which:03b}"));
        }
        for (vae, taesd) in [(&vae_file, &None), (&vae_diffusers, &None), (&None, &tiny), (&vae_file, &tiny)]
        {
            let files = ModelFiles { vae: vae.clone(), taesd: taesd.clone(), ..parts.clone() };
            agree(&files, true, &format!("{name} in parts with {vae:?} and {taesd:?}"));
        }
        agree(&parts, false, &format!("{name} without a decoder"));
    }
}

/// Names with the prefixes of other programs, in each setting.
#[test]
fn prefixes_are_taken_by_both_or_by_neither() {
    let shelf = shelf();
    let none = ModelFiles::default();
    let encoder = shelf.put(F16, "l", &clip_l());
    let tiny = shelf.put(F16, "taesd", &taesd(16));
    let main = shelf.put(F16, "main", &mmdit(MEDIUM));
    for (prefix, alone, whole) in [
        ("", true, false),
        ("model.diffusion_model.", true, true),
        ("diffusion_model.", true, true),
        ("unet.", true, true),
        ("transformer.", true, true),
        ("something.else.", false, false),
    ] {
        let file = shelf.put(if alone { F16 } else { Q4_0 }, "file", &prefixed(prefix, mmdit(MEDIUM)));
        let parts = ModelFiles { clip_l: encoder.clone(), taesd: tiny.clone(), ..none.clone() };
        let set = ModelFiles { diffusion_model: file.clone(), ..parts.clone() };
        agree(&set, alone, &format!("diffusion_model under {prefix}"));
        agree(&ModelFiles { model: file, ..parts }, whole, &format!("model under {prefix}"));
    }
    for (prefix, usable) in [
        ("", true),
        ("text_encoders.clip_l.transformer.", true),
        ("clip_l.transformer.", false),
        ("cond_stage_model.transformer.", false),
        ("conditioner.embedders.0.transformer.", false),
    ] {
        let clip_l = shelf.put(F16, "prefixed-l", &prefixed(prefix, clip_l()));
        let files = ModelFiles { diffusion_model: main.clone(), clip_l, taesd: tiny.clone(), ..none.clone() };
        agree(&files, usable, &format!("clip_l under {prefix}"));
    }
    for (prefix, alone, whole) in [("te3.", false, true), ("text_encoders.t5xxl.transformer.", true, true)] {
        let t5 = prefixed(prefix, t5xxl());
        let file = shelf.put(F16, "t5", &t5);
        let files =
            ModelFiles { diffusion_model: main.clone(), t5xxl: file, taesd: tiny.clone(), ..none.clone() };
        agree(&files, alone, &format!("t5xxl under {prefix}"));
        let all = [prefixed("unet.", mmdit(MEDIUM)), t5, prefixed("vae.", vae(16, false))].concat();
        for (setting, files) in [
            ("model", ModelFiles { model: shelf.put(F16, "all", &all), ..none.clone() }),
            ("diffusion_model", ModelFiles { diffusion_model: shelf.put(F16, "all", &all), ..none.clone() }),
        ] {
            agree(&files, whole, &format!("{setting} with T5 under {prefix}"));
        }
    }
}

#[test]
fn a_part_with_one_wrong_tensor_is_refused() {
    let shelf = shelf();
    let whole = ModelFiles {
        diffusion_model: shelf.put(F16, "mmdit", &mmdit(MEDIUM)),
        clip_l: shelf.put(F16, "l", &clip_l()),
        clip_g: shelf.put(F16, "g", &clip_g()),
        t5xxl: shelf.put(F16, "t5", &t5xxl()),
        vae: shelf.put(F16, "vae", &vae(16, false)),
        ..ModelFiles::default()
    };
    agree(&whole, true, "as it is");
    let without_vae = ModelFiles { vae: None, ..whole.clone() };
    let mut at = 0;
    type Place = fn(&mut ModelFiles) -> &mut Option<PathBuf>;
    for (name, tensors, files, place) in [
        ("mmdit", mmdit(MEDIUM), &whole, (|files| &mut files.diffusion_model) as Place),
        ("l", clip_l(), &whole, |files| &mut files.clip_l),
        ("g", clip_g(), &whole, |files| &mut files.clip_g),
        ("t5", t5xxl(), &whole, |files| &mut files.t5xxl),
        ("vae", vae(16, false), &whole, |files| &mut files.vae),
        ("vae-diffusers", vae(16, true), &whole, |files| &mut files.vae),
        ("taesd", taesd(16), &without_vae, |files| &mut files.taesd),
    ] {
        for turn in 0..4 {
            // Far apart, and other ones in each part.
            at = (at + 1_000_003) % tensors.len();
            let mut wrong = tensors.clone();
            // CLIP-L has no use for that one.
            if name == "l" && wrong[at].0 == "text_projection.weight" {
                continue;
            }
            if turn % 2 == 0 {
                wrong.remove(at);
            } else if let Some(last) = wrong[at].1.last_mut() {
                *last += 1;
            }
            let what = format!(
                "{name}, {} {}",
                if turn % 2 == 0 { "without" } else { "with more of" },
                tensors[at].0
            );
            let mut files = files.clone();
            *place(&mut files) = shelf.put(F16, "wrong", &wrong);
            agree(&files, false, &what);
        }
    }
}

#[test]
fn the_demo_model_is_of_this_shape() {
    let demo = demo::unpack(&demo::cache_dir().unwrap(), &weave_trust::Rules::default()).unwrap();
    let files = ModelFiles {
        diffusion_model: Some(demo.diffusion_model),
        clip_l: Some(demo.clip_l),
        taesd: Some(demo.taesd),
        ..ModelFiles::default()
    };
    let found = files.check().unwrap().unwrap().to_string();
    assert_eq!(
        found,
        "a model of SD 3.5's kind with hidden size 96, 24 blocks, f16; CLIP-L, f16; TAESD, f16; no CLIP-G; no T5-XXL"
    );
    agree(&files, true, "the demo model");
}

/// After the check a file may still be replaced.
#[test]
fn a_part_that_is_empty_is_an_error_of_the_engine() {
    let shelf = shelf();
    let empty = shelf.put(F16, "empty", &[]);
    let demo = demo::unpack(&demo::cache_dir().unwrap(), &weave_trust::Rules::default()).unwrap();
    for bad in [&["diffusion-model", "clip-l", "taesd"][..], &["diffusion-model"], &["clip-l"], &["taesd"]] {
        let part = |name: &str, good: &Path| {
            if bad.contains(&name) { empty.clone() } else { Some(good.to_owned()) }
        };
        let files = ModelFiles {
            diffusion_model: part("diffusion-model", &demo.diffusion_model),
            clip_l: part("clip-l", &demo.clip_l),
            taesd: part("taesd", &demo.taesd),
            ..ModelFiles::default()
        };
        assert!(!loads(&files), "with bad {bad:?}");
    }
}
