//! The parts of the build script that decide something, on made-up sources and caches.

#![allow(dead_code, reason = "the build script uses all of what is included here, a test may not")]

#[path = "../build/api.rs"]
mod api;
#[path = "../build/cache.rs"]
mod cache;
#[path = "../build/corrections.rs"]
mod corrections;
#[path = "../build/cuda.rs"]
mod cuda;
#[path = "../build/vocabulary.rs"]
mod vocabulary;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use corrections::{CORRECTIONS, Correction};

/// A folder for one test.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

mod correcting {
    use super::*;

    const FRUIT: Correction = Correction {
        name: "fruit",
        reason: "apples are out",
        upstream: "none",
        files: &["moved.cpp", "here.cpp"],
        find: "apple",
        replace: "pear",
        already: Some("quince"),
    };

    /// Applies `FRUIT` to a source in which `here.cpp` has this text, and returns the new text.
    fn apply_to(text: &str) -> Result<String, String> {
        let root = folder();
        let root = root.path();
        fs::write(root.join("here.cpp"), text).unwrap();
        corrections::apply(root, &[&FRUIT])?;
        Ok(fs::read_to_string(root.join("here.cpp")).unwrap())
    }

    #[test]
    fn one_match_is_replaced() {
        assert_eq!(apply_to("an apple a day").unwrap(), "an pear a day");
    }

    #[test]
    fn two_matches_are_an_error_that_names_the_correction() {
        let error = apply_to("apple, apple").unwrap_err();
        assert!(error.contains("`fruit`") && error.contains("2 places"), "{error}");
    }

    #[test]
    fn no_match_is_an_error_that_names_the_correction() {
        let error = apply_to("plum").unwrap_err();
        assert!(error.contains("`fruit`") && error.contains("0 places"), "{error}");
    }

    #[test]
    fn matches_are_counted_over_all_files() {
        let root = folder();
        let root = root.path();
        fs::write(root.join("here.cpp"), "apple").unwrap();
        fs::write(root.join("moved.cpp"), "apple").unwrap();
        assert!(corrections::apply(root, &[&FRUIT]).is_err());
        fs::write(root.join("here.cpp"), "plum").unwrap();
        corrections::apply(root, &[&FRUIT]).unwrap();
        assert_eq!(fs::read_to_string(root.join("moved.cpp")).unwrap(), "pear");
    }

    #[test]
    fn a_source_that_is_right_is_left_alone() {
        assert_eq!(apply_to("quince").unwrap(), "quince");
    }

    #[test]
    fn what_is_skipped_must_exist() {
        let all = CORRECTIONS.len();
        assert_eq!(corrections::except("").unwrap().len(), all);
        let rest = corrections::except("seed-as-bits, pooled-rank-clip-g").unwrap();
        assert_eq!(rest.len(), all - 2);
        assert!(rest.iter().all(|c| c.name != corrections::SEED_AS_BITS && c.name != "pooled-rank-clip-g"));
        assert!(corrections::except("no-such").unwrap_err().contains("`no-such`"));
    }

    #[test]
    fn a_corrected_source_is_not_corrected_again() {
        // Or else a correction could be applied to what another one wrote.
        for correction in CORRECTIONS {
            let times = |text: &str| text.matches(correction.find).count();
            let written: usize = CORRECTIONS.iter().map(|other| times(other.replace)).sum();
            let own = times(correction.replace);
            assert_eq!(written, own, "{} also matches what another correction writes", correction.name);
        }
    }
}

mod caching {
    use super::*;

    fn write(kept: &Path) -> Result<(), String> {
        fs::write(kept.join("lib.a"), "whole").map_err(|e| e.to_string())
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_key_depends_on_every_byte() {
        assert_eq!(cache::key(""), "cbf29ce484222325");
        assert_eq!(cache::key("a"), "af63dc4c8601ec8c");
        assert_ne!(cache::key("native: 1\n"), cache::key("native: 0\n"));
    }

    #[test]
    fn an_entry_is_built_once() {
        let folder = folder();
        let folder = folder.path();
        assert_eq!(cache::look_up(folder, "inputs"), None);
        let entry = cache::get_or_build(folder, "inputs", |_, kept| write(kept)).unwrap();
        let again = cache::get_or_build(folder, "inputs", |_, _| Err("built twice".to_owned())).unwrap();
        assert_eq!(entry, again);
        assert_eq!(cache::look_up(folder, "inputs"), Some(entry.clone()));
        assert_eq!(fs::read_to_string(entry.join("lib.a")).unwrap(), "whole");
        let key = cache::key("inputs");
        assert_eq!(names(folder), [key.clone(), format!("{key}.lock")]);
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_neither_read_nor_written() {
        let folder = folder();
        let open = folder.path().join("open");
        let entry = open.join("engine").join(cache::key("inputs"));
        fs::create_dir_all(&entry).unwrap();
        fs::write(entry.join(cache::INPUTS), "inputs").unwrap();
        fs::write(entry.join("lib.a"), "somebody else's").unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = cache::get_or_build(&open.join("engine"), "inputs", |_, kept| write(kept)).unwrap_err();
        assert!(refused.contains("open has mode 0777") && refused.contains("WEAVE_CACHE_DIR"), "{refused}");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        cache::get_or_build(&link.join("engine"), "inputs", |_, kept| write(kept)).unwrap_err();
        assert_eq!(names(&open.join("engine")), [cache::key("inputs")]);
        assert_eq!(fs::read_to_string(entry.join("lib.a")).unwrap(), "somebody else's");
    }

    #[test]
    fn other_inputs_are_another_entry() {
        let folder = folder();
        let folder = folder.path();
        let one = cache::get_or_build(folder, "one", |_, kept| write(kept)).unwrap();
        let two = cache::get_or_build(folder, "two", |_, kept| write(kept)).unwrap();
        assert_ne!(one, two);
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let folder = folder();
        let folder = folder.path();
        let failed = cache::get_or_build(folder, "inputs", |_, kept| {
            write(kept)?;
            Err("compiler error".to_owned())
        });
        assert_eq!(failed.unwrap_err(), "compiler error");
        assert_eq!(cache::look_up(folder, "inputs"), None);
        assert_eq!(names(folder), [format!("{}.lock", cache::key("inputs"))]);
        cache::get_or_build(folder, "inputs", |_, kept| write(kept)).unwrap();
    }

    #[test]
    fn what_a_killed_build_left_is_removed() {
        let folder = folder();
        let folder = folder.path();
        let left = folder.join(format!("{}.building.1", cache::key("inputs")));
        let of_another = folder.join(format!("{}.building.1", cache::key("other")));
        for path in [&left, &of_another] {
            fs::create_dir_all(path.join("kept")).unwrap();
            fs::write(path.join("kept").join(cache::INPUTS), "inputs").unwrap();
        }
        assert_eq!(cache::look_up(folder, "inputs"), None);
        let entry = cache::get_or_build(folder, "inputs", |_, kept| write(kept)).unwrap();
        assert_eq!(fs::read_to_string(entry.join("lib.a")).unwrap(), "whole");
        assert!(!left.exists());
        assert!(of_another.exists(), "another build may be at work there");
    }

    #[test]
    fn an_entry_without_its_inputs_is_replaced() {
        let folder = folder();
        let folder = folder.path();
        let entry = folder.join(cache::key("inputs"));
        fs::create_dir_all(&entry).unwrap();
        fs::write(entry.join("lib.a"), "half").unwrap();
        fs::write(entry.join(cache::INPUTS), "other inputs with the same hash").unwrap();
        let built = cache::get_or_build(folder, "inputs", |_, kept| write(kept)).unwrap();
        assert_eq!(built, entry);
        assert_eq!(fs::read_to_string(entry.join("lib.a")).unwrap(), "whole");
    }

    #[test]
    fn of_two_builds_at_once_the_second_waits() {
        let folder = folder();
        let folder = folder.path();
        let builds = AtomicUsize::new(0);
        let start = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let built = cache::get_or_build(folder, "inputs", |_, kept| {
                        builds.fetch_add(1, Ordering::SeqCst);
                        // Long enough for the others to come along if nothing held them.
                        thread::sleep(std::time::Duration::from_millis(50));
                        write(kept)
                    });
                    assert_eq!(fs::read_to_string(built.unwrap().join("lib.a")).unwrap(), "whole");
                });
            }
        });
        assert_eq!(builds.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_folder_is_the_first_that_is_set() {
        let with = |set: &[(&str, &str)]| {
            cache::folder(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value)))
        };
        let all = [("WEAVE_CACHE_DIR", "/w"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(with(&all).unwrap(), Path::new("/w/engine"));
        assert_eq!(with(&all[1..]).unwrap(), Path::new("/x/weave/engine"));
        assert_eq!(with(&all[2..]).unwrap(), Path::new("/h/.cache/weave/engine"));
        assert_eq!(
            with(&[("WEAVE_CACHE_DIR", ""), ("HOME", "/h")]).unwrap(),
            Path::new("/h/.cache/weave/engine")
        );
        assert!(with(&[]).is_err());
        assert!(with(&[("WEAVE_CACHE_DIR", "relative")]).is_err());
    }
}

mod reading_the_header {
    use super::*;
    use api::Api;

    const COMMON: &str = "
        SD_API sd_ctx_t* new_sd_ctx(const sd_ctx_params_t* p);
        SD_API void free_sd_ctx(sd_ctx_t* c);
        SD_API void free_sd_images(sd_image_t* i, int n);
        SD_API void sd_ctx_params_init(sd_ctx_params_t* p);
        SD_API void sd_img_gen_params_init(sd_img_gen_params_t* p);
        SD_API void sd_set_log_callback(sd_log_cb_t cb, void* data);
        SD_API void sd_set_progress_callback(sd_progress_cb_t cb, void* data);
    ";

    fn read(more: &str) -> Result<Api, String> {
        api::read(&format!("{COMMON}\n{more}"))
    }

    #[test]
    fn images_are_returned() {
        let api = read("SD_API sd_image_t* generate_image(sd_ctx_t* c, const sd_img_gen_params_t* p);");
        assert_eq!(api, Ok(Api { flag: false, cancel: false }));
    }

    #[test]
    fn images_are_handed_out() {
        let api = read(
            "SD_API bool generate_image(sd_ctx_t* sd_ctx,
                                        const sd_img_gen_params_t* params,
                                        sd_image_t** images_out,
                                        int* num_images_out);
             SD_API void sd_cancel_generation(sd_ctx_t* sd_ctx, enum sd_cancel_mode_t mode);",
        );
        assert_eq!(api, Ok(Api { flag: true, cancel: true }));
    }

    #[test]
    fn comments_and_longer_names_do_not_count() {
        let api = read(
            "// call sd_cancel_generation(ctx) or bool generate_image(a, b, c, d) one day
             /* SD_API void sd_cancel_generation(sd_ctx_t* c); */
             SD_API bool regenerate_image(int a);
             SD_API sd_image_t *generate_image (sd_ctx_t *c, const sd_img_gen_params_t *p);",
        );
        assert_eq!(api, Ok(Api { flag: false, cancel: false }));
    }

    #[test]
    fn another_shape_is_an_error_that_says_which() {
        let error =
            read("SD_API int generate_image(sd_ctx_t* c, const sd_img_gen_params_t* p);").unwrap_err();
        assert!(error.contains("result `int`"), "{error}");
        let error = read("SD_API bool generate_image(sd_ctx_t* c);").unwrap_err();
        assert!(error.contains("with 1 parameters"), "{error}");
    }

    #[test]
    fn a_missing_function_is_an_error_that_names_it() {
        assert!(read("").unwrap_err().contains("`generate_image`"));
        assert!(api::read("").unwrap_err().contains("`new_sd_ctx`"));
    }
}

mod choosing_cuda_architectures {
    use super::*;

    fn choose(set: &[(&str, &str)], gpus: Option<&str>) -> Result<String, String> {
        cuda::architectures(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()), gpus)
    }

    #[test]
    fn a_variable_goes_before_the_gpus_and_those_before_the_default() {
        let (own, of_cmake) =
            (("WEAVE_CUDA_ARCHITECTURES", "75-real, 86-real,90"), ("CUDAARCHS", "all-major"));
        assert_eq!(choose(&[own, of_cmake], Some("8.9\n")).unwrap(), "75-real;86-real;90");
        assert_eq!(
            choose(&[("WEAVE_CUDA_ARCHITECTURES", ""), of_cmake], Some("8.9\n")).unwrap(),
            "all-major"
        );
        assert_eq!(choose(&[], Some("9.0\n8.6\n9.0\n")).unwrap(), "86-real;90-real");
        assert_eq!(choose(&[], None).unwrap(), "80");
        // Old drivers, and boards that don't say.
        assert_eq!(choose(&[], Some("[N/A]\n")).unwrap(), "80");
        assert_eq!(choose(&[], Some("")).unwrap(), "80");
    }

    #[test]
    fn what_is_no_architecture_is_an_error_that_names_variable_and_value() {
        for wrong in ["sm_86", "8.6", "86,", "86-fake", "8", "1234"] {
            let error = choose(&[("WEAVE_CUDA_ARCHITECTURES", wrong)], None).unwrap_err();
            assert!(error.contains(&format!("WEAVE_CUDA_ARCHITECTURES is `{wrong}`")), "{error}");
        }
    }
}

mod leaving_out_vocabularies {
    use super::*;

    #[test]
    fn every_declared_function_is_defined() {
        let unit = vocabulary::unit(
            "#include <string>\nstd::string load_clip_merges();\nstd::string load_new_json();\nstd::string load_t5_tokenizer_json();\n",
        )
        .unwrap();
        assert!(
            unit.contains("std::string load_clip_merges() {\n    return std::string(reinterpret"),
            "{unit}"
        );
        assert!(
            unit.contains("std::string load_t5_tokenizer_json() {\n    return std::string(reinterpret"),
            "{unit}"
        );
        assert!(unit.contains("std::string load_new_json() {\n    throw std::runtime_error("), "{unit}");
    }

    #[test]
    fn a_header_without_the_needed_ones_is_an_error() {
        let error = vocabulary::unit("std::string load_clip_merges();").unwrap_err();
        assert!(error.contains("`load_t5_tokenizer_json`"), "{error}");
    }
}
