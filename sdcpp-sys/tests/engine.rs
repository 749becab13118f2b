//! The engine is linked, the declarations fit it, and what goes wrong in it becomes a status.

#![allow(unsafe_code, reason = "calling foreign functions is what is tested")]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::raw::c_char;
use std::ptr::{self, NonNull};

use sdcpp_sys::*;

/// A buffer for what the layer has to say, full of something else at first.
struct Message<const N: usize>([u8; N]);

impl<const N: usize> Message<N> {
    fn new() -> Self {
        Self([b'?'; N])
    }

    fn pointer(&mut self) -> *mut c_char {
        self.0.as_mut_ptr().cast()
    }

    fn text(&self) -> &str {
        CStr::from_bytes_until_nul(&self.0).unwrap().to_str().unwrap()
    }
}

fn context_parameters() -> sd_ctx_params_t {
    let mut parameters = MaybeUninit::uninit();
    let mut message = Message::<64>::new();
    // SAFETY: both pointers are to live memory of the size that is given.
    let status = unsafe { sdcpp_ctx_params_init(parameters.as_mut_ptr(), message.pointer(), 64) };
    assert_eq!((status, message.text()), (sdcpp_status::SDCPP_OK, ""));
    // SAFETY: the call above wrote all of it.
    unsafe { parameters.assume_init() }
}

fn image_parameters() -> sd_img_gen_params_t {
    let mut parameters = MaybeUninit::uninit();
    let mut message = Message::<64>::new();
    // SAFETY: both pointers are to live memory of the size that is given.
    let status = unsafe { sdcpp_img_gen_params_init(parameters.as_mut_ptr(), message.pointer(), 64) };
    assert_eq!((status, message.text()), (sdcpp_status::SDCPP_OK, ""));
    // SAFETY: the call above wrote all of it.
    unsafe { parameters.assume_init() }
}

#[test]
fn the_engine_says_what_it_is() {
    // SAFETY: the function takes nothing.
    let info = unsafe { sd_get_system_info() };
    // SAFETY: it returns a NUL-terminated string that lives as long as the process.
    let info = unsafe { CStr::from_ptr(info) };
    assert!(info.to_string_lossy().contains("AVX"), "{info:?}");
    assert!(["package", "checkout", "prebuilt"].contains(&ENGINE.source), "{ENGINE:?}");
    // A newer package has another commit, which has to be looked up.
    assert_eq!(ENGINE.commit().is_some(), ENGINE.source == "package", "{ENGINE:?}");
    assert!(ENGINE.source == "prebuilt" || ENGINE.back_ends.contains(&"cpu"), "{ENGINE:?}");
    // SAFETY: the function takes nothing.
    assert_eq!(ENGINE.every_seed, unsafe { sdcpp_every_seed() });
}

#[test]
fn the_engine_says_what_it_computes_on() {
    let mut device = MaybeUninit::uninit();
    let mut message = Message::<64>::new();
    // SAFETY: both pointers are to live memory of the size that is given.
    let status = unsafe { sdcpp_default_device(device.as_mut_ptr(), message.pointer(), 64) };
    if ENGINE.back_ends.is_empty() {
        assert_eq!(status, sdcpp_status::SDCPP_UNSUPPORTED);
        return;
    }
    assert_eq!((status, message.text()), (sdcpp_status::SDCPP_OK, ""));
    // SAFETY: the call above wrote all of it.
    let device: sdcpp_device = unsafe { device.assume_init() };
    // SAFETY: the layer ends both texts with a NUL.
    let [name, description] = [device.name.as_ptr(), device.description.as_ptr()]
        .map(|text| unsafe { CStr::from_ptr(text) }.to_str().unwrap());
    assert!(!name.is_empty() && !description.is_empty(), "{name:?} {description:?}");
    if ENGINE.back_ends == ["cpu"] {
        assert_eq!((name, device.is_cpu), ("CPU", true));
    }
    // SAFETY: null is allowed for both, and refused for the device.
    let status = unsafe { sdcpp_default_device(ptr::null_mut(), ptr::null_mut(), 0) };
    assert_eq!(status, sdcpp_status::SDCPP_NULL_ARGUMENT);
}

#[test]
fn structures_are_read_where_the_engine_writes_them() {
    // Defaults from the first to the last fields, so that a shift anywhere would show.
    let context = context_parameters();
    assert!(context.model_path.is_null());
    assert!(context.n_threads > 0);
    assert_eq!(context.wtype, sd_type_t::SD_TYPE_COUNT);
    assert_eq!(context.rng_type, rng_type_t::CUDA_RNG);
    assert_eq!(context.prediction, prediction_t::PREDICTION_COUNT);
    assert!(context.params_backend.is_null());

    let image = image_parameters();
    assert_eq!((image.width, image.height), (512, 512));
    assert_eq!(image.sample_params.sample_method, sample_method_t::SAMPLE_METHOD_COUNT);
    assert_eq!(image.sample_params.guidance.txt_cfg, 7.0);
    assert_eq!((image.seed, image.batch_count), (-1, 1));
    assert_eq!(image.vae_tiling_params.target_overlap, 0.5);
    assert_eq!(image.hires.denoising_strength, 0.7);
}

#[test]
fn a_value_that_no_header_lists_is_a_value() {
    assert_ne!(sample_method_t(12345), sample_method_t::EULER_SAMPLE_METHOD);
}

#[test]
fn a_model_that_is_not_there_is_a_status() {
    let mut parameters = context_parameters();
    parameters.diffusion_model_path = c"/nonexistent/model.safetensors".as_ptr();
    let mut context = NonNull::dangling().as_ptr();
    let mut message = Message::<64>::new();
    // SAFETY: all pointers are to live memory; the path is a NUL-terminated string.
    let status = unsafe { sdcpp_ctx_new(&parameters, &mut context, message.pointer(), 64) };
    assert_eq!((status, message.text()), (sdcpp_status::SDCPP_NO_RESULT, "the engine made no context"));
    assert!(context.is_null());
}

#[test]
fn what_is_thrown_is_caught() {
    let cases = [
        (sdcpp_thrown::SDCPP_THROW_RUNTIME_ERROR, sdcpp_status::SDCPP_EXCEPTION, "thrown \u{fc}"),
        (sdcpp_thrown::SDCPP_THROW_BAD_ALLOC, sdcpp_status::SDCPP_OUT_OF_MEMORY, "out of memory"),
        (
            sdcpp_thrown::SDCPP_THROW_INT,
            sdcpp_status::SDCPP_EXCEPTION,
            "an exception that is no std::exception",
        ),
    ];
    for (what, status, text) in cases {
        let mut message = Message::<64>::new();
        // SAFETY: the buffer is as long as is said.
        let got = unsafe { sdcpp_throw(what, message.pointer(), 64) };
        assert_eq!((got, message.text()), (status, text));
    }
}

#[test]
fn a_message_is_cut_between_characters() {
    // "thrown ü" is nine bytes; the last two are one character.
    for (room, text) in [(10, "thrown \u{fc}"), (9, "thrown "), (8, "thrown "), (7, "thrown"), (1, "")] {
        let mut message = Message::<16>::new();
        // SAFETY: the buffer is longer than is said.
        unsafe { sdcpp_throw(sdcpp_thrown::SDCPP_THROW_RUNTIME_ERROR, message.pointer(), room) };
        assert_eq!(message.text(), text, "in {room} bytes");
        assert!(message.0[room..].iter().all(|byte| *byte == b'?'), "wrote past {room} bytes");
    }
    // SAFETY: a null buffer of no length is allowed.
    let status = unsafe { sdcpp_throw(sdcpp_thrown::SDCPP_THROW_INT, ptr::null_mut(), 0) };
    assert_eq!(status, sdcpp_status::SDCPP_EXCEPTION);
}

#[test]
fn null_is_refused_or_ignored() {
    let parameters = image_parameters();
    let mut image = sd_image_t { width: 1, height: 1, channel: 1, data: NonNull::dangling().as_ptr() };
    let mut message = Message::<64>::new();
    // SAFETY: null is allowed for the context.
    let status = unsafe { sdcpp_generate(ptr::null_mut(), &parameters, &mut image, message.pointer(), 64) };
    assert_eq!(status, sdcpp_status::SDCPP_NULL_ARGUMENT);
    assert!(!message.text().is_empty());
    assert_eq!((image.width, image.height, image.channel), (0, 0, 0));
    assert!(image.data.is_null());

    let mut context = NonNull::dangling().as_ptr();
    // SAFETY: null is allowed for the parameters.
    let status = unsafe { sdcpp_ctx_new(ptr::null(), &mut context, ptr::null_mut(), 0) };
    assert_eq!(status, sdcpp_status::SDCPP_NULL_ARGUMENT);
    assert!(context.is_null());
    // SAFETY: null is allowed for both.
    let status = unsafe { sdcpp_ctx_new(ptr::null(), ptr::null_mut(), ptr::null_mut(), 0) };
    assert_eq!(status, sdcpp_status::SDCPP_NULL_ARGUMENT);
    // SAFETY: null is allowed.
    let status = unsafe { sdcpp_ctx_params_init(ptr::null_mut(), ptr::null_mut(), 0) };
    assert_eq!(status, sdcpp_status::SDCPP_NULL_ARGUMENT);
    // SAFETY: null is allowed.
    let status = unsafe { sdcpp_img_gen_params_init(ptr::null_mut(), ptr::null_mut(), 0) };
    assert_eq!(status, sdcpp_status::SDCPP_NULL_ARGUMENT);
    // SAFETY: null is ignored.
    let status = unsafe { sdcpp_ctx_free(ptr::null_mut(), ptr::null_mut(), 0) };
    assert_eq!(status, sdcpp_status::SDCPP_OK);
    // SAFETY: null is ignored.
    unsafe { sdcpp_pixels_free(ptr::null_mut()) };
}

#[test]
fn more_than_one_image_is_refused() {
    let mut parameters = image_parameters();
    parameters.batch_count = 2;
    let mut image = MaybeUninit::uninit();
    let mut message = Message::<64>::new();
    let context = NonNull::dangling().as_ptr();
    // SAFETY: the number of images is checked before the context is looked at.
    let status = unsafe { sdcpp_generate(context, &parameters, image.as_mut_ptr(), message.pointer(), 64) };
    assert_eq!((status, message.text()), (sdcpp_status::SDCPP_UNSUPPORTED, "batch_count is not 1"));
}

#[test]
fn the_engine_lists_its_devices_and_their_memory() {
    let at = |index| {
        let mut device = MaybeUninit::uninit();
        let mut message = Message::<64>::new();
        // SAFETY: both pointers are to live memory of the size that is given.
        let status = unsafe { sdcpp_device_at(index, device.as_mut_ptr(), message.pointer(), 64) };
        // SAFETY: the call above wrote all of it, whatever it says.
        (status, unsafe { device.assume_init() })
    };
    if ENGINE.back_ends.is_empty() {
        assert_eq!(at(0).0, sdcpp_status::SDCPP_UNSUPPORTED);
        return;
    }
    let count = (0..64).take_while(|index| at(*index).0 == sdcpp_status::SDCPP_OK).count();
    assert_eq!(at(count).0, sdcpp_status::SDCPP_NO_RESULT);
    let last = at(count - 1).1;
    assert!(last.is_cpu, "GPUs come first");
    // SAFETY: the layer ends the text with a NUL.
    let back_end = unsafe { CStr::from_ptr(last.back_end.as_ptr()) };
    assert_eq!(back_end.to_str(), Ok("CPU"));

    let (mut free, mut total) = (1, 1);
    let mut message = Message::<64>::new();
    // SAFETY: the pointers are to live memory, of the size that is given.
    let status = unsafe { sdcpp_device_memory(count - 1, &mut free, &mut total, message.pointer(), 64) };
    assert_eq!((status, message.text()), (sdcpp_status::SDCPP_OK, ""));
    assert!(free <= total && total > 100_000_000, "{free} of {total}");
    // SAFETY: as above.
    let status = unsafe { sdcpp_device_memory(count, &mut free, &mut total, message.pointer(), 64) };
    assert_eq!((status, free, total), (sdcpp_status::SDCPP_NO_RESULT, 0, 0));
    // SAFETY: null is what is tested, and a message is not wanted.
    let status = unsafe { sdcpp_device_memory(0, ptr::null_mut(), &mut total, ptr::null_mut(), 0) };
    assert_eq!(status, sdcpp_status::SDCPP_NULL_ARGUMENT);
}
