//! stable-diffusion.cpp behind a safe handle.
//!
//! The engine is made, used and freed by one thread, the worker's. Its callbacks are process-wide,
//! so there is one engine in a process.
#![allow(unsafe_code, reason = "the one module of this crate that calls C")]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sdcpp_sys as sys;
use weave_core::error::ErrorCode;
use weave_core::request::Params;
use weave_core::response::ImageSize;

use super::{Engine, EngineError, Image, Job};
use crate::config::Config;
use crate::logger;
use crate::scoreboard::{Control, Phase};

/// Whether the engine has logged that an allocation failed, since this was last cleared.
static OUT_OF_MEMORY: AtomicBool = AtomicBool::new(false);

/// Whether the engine has warned that it could not load a part of the model. It goes on without it,
/// and an image without its text encoder has nothing to do with the prompt.
static PART_MISSING: AtomicBool = AtomicBool::new(false);

/// Room for what the C++ layer says of a failure.
type Message = [u8; 256];

thread_local! {
    /// Who is told how far the engine is that this thread has called.
    static CONTROL: RefCell<Control> = const { RefCell::new(Control::none()) };
}

/// The engine, with a context that can be made again.
pub struct Sdcpp {
    /// `None` after a failure that may have left it in any state.
    context: Option<Context>,
    config: Config,
}

impl Sdcpp {
    /// Makes a context for the model files of `config`.
    ///
    /// # Errors
    /// A sentence that says why not; what the engine itself had to say is in the log.
    pub fn load(config: &Config, control: &Control) -> Result<Self, String> {
        CONTROL.set(control.clone());
        Ok(Self { context: Some(Context::new(config)?), config: config.clone() })
    }

    /// The context, made anew if the last one is gone.
    fn context(&mut self) -> Result<&Context, String> {
        if self.context.is_none() {
            log::warn!("engine: loading the model again, since what it was left in can't be relied on");
            self.context = Some(Context::new(&self.config)?);
        }
        self.context.as_ref().ok_or_else(|| "there is no context".to_owned())
    }
}

/// A context of the engine: a model and everything it needs.
struct Context(NonNull<sys::sd_ctx_t>);

impl Context {
    fn new(config: &Config) -> Result<Self, String> {
        // SAFETY: both have the signatures that the C++ layer calls, and need no data.
        unsafe { sys::sdcpp_set_callbacks(Some(log_line), Some(progress), ptr::null_mut()) };

        let mut message: Message = [0; _];
        let mut params = MaybeUninit::uninit();
        // SAFETY: there is room for the parameters, and for a message of the length given.
        let status = unsafe {
            sys::sdcpp_ctx_params_init(params.as_mut_ptr(), message.as_mut_ptr().cast(), message.len())
        };
        if status != sys::sdcpp_status::SDCPP_OK {
            return Err(format!("the engine's parameters can't be made: {}", told(&message)));
        }
        // SAFETY: the call succeeded, so all of it is initialised.
        let mut params = unsafe { params.assume_init() };

        let c_path = |path: &Option<std::path::PathBuf>| path.as_deref().map(c_string).transpose();
        let model = &config.model;
        let paths = [
            &model.model,
            &model.diffusion_model,
            &model.clip_l,
            &model.clip_g,
            &model.t5xxl,
            &model.vae,
            &model.taesd,
        ];
        let mut owned = Vec::with_capacity(paths.len());
        for path in paths {
            owned.push(c_path(path)?);
        }
        let places = [
            &mut params.model_path,
            &mut params.diffusion_model_path,
            &mut params.clip_l_path,
            &mut params.clip_g_path,
            &mut params.t5xxl_path,
            &mut params.vae_path,
            &mut params.taesd_path,
        ];
        for (place, path) in places.into_iter().zip(&owned) {
            if let Some(path) = path {
                *place = path.as_ptr();
            }
        }
        params.diffusion_flash_attn = config.flash_attention;
        params.n_threads = c_int::from(config.threads.unwrap_or_else(half_of_the_processors).cast_signed());

        PART_MISSING.store(false, Ordering::Relaxed);
        let mut context = ptr::null_mut();
        // SAFETY: the parameters are initialised, the strings they point to live in `owned` until
        // after the call, which copies them, and there is room for the result and the message.
        let status =
            unsafe { sys::sdcpp_ctx_new(&params, &mut context, message.as_mut_ptr().cast(), message.len()) };
        log_device();
        match NonNull::new(context) {
            Some(context) if status == sys::sdcpp_status::SDCPP_OK => {
                let engine = Self(context);
                if PART_MISSING.load(Ordering::Relaxed) {
                    return Err(
                        "the model can't be loaded: the engine could not read one of its parts".to_owned()
                    );
                }
                Ok(engine)
            }
            _ => Err(format!("the model can't be loaded: {}", told(&message))),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context came from `sdcpp_ctx_new`, is freed only here, and a message is not
        // wanted, for which null and 0 stand.
        unsafe { sys::sdcpp_ctx_free(self.0.as_ptr(), ptr::null_mut(), 0) };
    }
}

impl Engine for Sdcpp {
    fn generate(&mut self, job: &Job<'_>, control: &Control) -> Result<Image, EngineError> {
        CONTROL.set(control.clone());
        let context = self.context().map_err(|error| {
            log::error!("engine: {error}");
            let text = "the engine could not load its model again; the daemon's log says more".to_owned();
            EngineError { code: ErrorCode::GpuError, text }
        })?;
        let (result, is_sound) = context.generate(job);
        if !is_sound {
            self.context = None;
        }
        result
    }
}

impl Context {
    /// Draws one image, and says whether the context can be used again.
    fn generate(&self, job: &Job<'_>) -> (Result<Image, EngineError>, bool) {
        // As long as the engine was not called.
        let mut status = sys::sdcpp_status::SDCPP_NULL_ARGUMENT;
        let result = self.draw(job, &mut status);
        // Where the engine says no and returns in its own time, it has cleaned up. An exception went
        // through code that didn't expect it, and an image that is none comes from who knows what.
        let is_sound = match status {
            sys::sdcpp_status::SDCPP_OK => result.is_ok(),
            sys::sdcpp_status::SDCPP_NO_RESULT
            | sys::sdcpp_status::SDCPP_UNSUPPORTED
            | sys::sdcpp_status::SDCPP_NULL_ARGUMENT
            | sys::sdcpp_status::SDCPP_CANCELLED => true,
            _ => false,
        };
        (result, is_sound)
    }

    fn draw(&self, job: &Job<'_>, status: &mut sys::sdcpp_status) -> Result<Image, EngineError> {
        let internal = |text: String| EngineError { code: ErrorCode::Internal, text };
        let prompt = CString::new(job.prompt).map_err(|_| internal("the prompt has a NUL".to_owned()))?;
        let side = |pixels: u32| c_int::try_from(pixels).map_err(|error| internal(error.to_string()));

        let mut message: Message = [0; _];
        let mut params = MaybeUninit::uninit();
        // SAFETY: there is room for the parameters, and for a message of the length given.
        let initialised = unsafe {
            sys::sdcpp_img_gen_params_init(params.as_mut_ptr(), message.as_mut_ptr().cast(), message.len())
        };
        if initialised != sys::sdcpp_status::SDCPP_OK {
            return Err(internal("the engine's parameters can't be made".to_owned()));
        }
        // SAFETY: the call succeeded, so all of it is initialised.
        let mut params: sys::sd_img_gen_params_t = unsafe { params.assume_init() };
        params.prompt = prompt.as_ptr();
        params.negative_prompt = c"".as_ptr();
        params.width = side(job.params.width)?;
        params.height = side(job.params.height)?;
        // All 64 bits count; the C++ layer refuses what an engine built elsewhere would replace.
        params.seed = job.params.seed.cast_signed();
        params.sample_params.sample_steps = side(job.params.steps)?;
        params.sample_params.guidance.txt_cfg = job.params.cfg_scale;

        OUT_OF_MEMORY.store(false, Ordering::Relaxed);
        let mut image = sys::sd_image_t { width: 0, height: 0, channel: 0, data: ptr::null_mut() };
        // SAFETY: the context is alive and used by this thread alone, the parameters are
        // initialised and the strings in them outlive the call, and there is room for the results.
        *status = unsafe {
            sys::sdcpp_generate(
                self.0.as_ptr(),
                &params,
                &mut image,
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        let pixels = NonNull::new(image.data).map(|data| Pixels {
            data,
            len: [image.width, image.height, image.channel]
                .into_iter()
                .try_fold(1usize, |product, n| product.checked_mul(usize::try_from(n).ok()?))
                .unwrap_or(0),
        });
        match pixels {
            Some(pixels) if *status == sys::sdcpp_status::SDCPP_OK => {
                let wrong = |what: String| {
                    log::error!("engine: {what}");
                    EngineError { code: ErrorCode::GpuError, text: what }
                };
                let size = ImageSize::new(image.width, image.height, image.channel).map_err(|error| {
                    wrong(format!("the engine made an image that can't be sent: {error}"))
                })?;
                let Params { width, height, .. } = job.params;
                if (size.width(), size.height()) != (width, height) {
                    let is = format_args!("{}×{}", size.width(), size.height());
                    return Err(wrong(format!("the engine made an image of {is}, not of {width}×{height}")));
                }
                Image::new(size, pixels)
            }
            _ if *status == sys::sdcpp_status::SDCPP_CANCELLED => Err(EngineError::cancelled()),
            _ => Err(failure(*status, &message)),
        }
    }
}

/// What the client is told. The engine's own words may name files, so they are for the log alone.
fn failure(status: sys::sdcpp_status, message: &Message) -> EngineError {
    log::error!("engine: {}", told(message));
    let ran_out = status == sys::sdcpp_status::SDCPP_OUT_OF_MEMORY || OUT_OF_MEMORY.load(Ordering::Relaxed);
    let (code, text) = if ran_out {
        (ErrorCode::OutOfMemory, "the device has not enough memory for this image; ask for a smaller one")
    } else if status == sys::sdcpp_status::SDCPP_UNSUPPORTED {
        (ErrorCode::Internal, "this engine takes seeds up to 9223372036854775807 only; ask for a smaller one")
    } else {
        (ErrorCode::GpuError, "the engine could not make this image; the daemon's log says more")
    };
    EngineError { code, text: text.to_owned() }
}

/// An image's bytes in the memory that the engine allocated.
struct Pixels {
    data: NonNull<u8>,
    len: usize,
}

impl AsRef<[u8]> for Pixels {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the engine made `len` bytes there (width · height · channels, as it said), gave
        // them away, and they are freed only when this value is dropped.
        unsafe { slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl Drop for Pixels {
    fn drop(&mut self) {
        // SAFETY: the pointer is the one that `sdcpp_generate` gave away, and this is its only owner.
        unsafe { sys::sdcpp_pixels_free(self.data.as_ptr()) };
    }
}

fn c_string(path: &Path) -> Result<CString, String> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| format!("{} can't be a path: it has a NUL", path.display()))
}

fn told(message: &Message) -> String {
    CStr::from_bytes_until_nul(message).unwrap_or_default().to_string_lossy().into_owned()
}

/// Says what is computed on, so that nobody takes the CPU for the GPU that they have.
fn log_device() {
    let mut device = MaybeUninit::uninit();
    // SAFETY: there is room for the device, and a message is not wanted, for which null and 0 stand.
    let status = unsafe { sys::sdcpp_default_device(device.as_mut_ptr(), ptr::null_mut(), 0) };
    if status != sys::sdcpp_status::SDCPP_OK {
        return;
    }
    // SAFETY: the call succeeded, so all of it is initialised.
    let device: sys::sdcpp_device = unsafe { device.assume_init() };
    // SAFETY: the C++ layer ends both texts with a NUL, inside of their arrays.
    let [name, description] = [device.name.as_ptr(), device.description.as_ptr()]
        .map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned());
    if device.is_cpu {
        log::info!("computing on the CPU ({description})");
        let for_gpus: Vec<_> = sys::ENGINE.back_ends.iter().copied().filter(|name| *name != "cpu").collect();
        if !for_gpus.is_empty() {
            log::warn!(
                "this weaved was built with {} too, but no such device was found: images take long; look after the \
                 driver (CUDA: nvidia-smi) and who may use it",
                for_gpus.join(" and ")
            );
        }
    } else {
        log::info!("computing on {name} ({description})");
    }
}

/// The default for `threads`. The engine's threads spin while they wait for each other, which on
/// processors that have other work costs more than it gains.
fn half_of_the_processors() -> u16 {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(processors / 2).unwrap_or(256).clamp(1, 256)
}

/// The engine's log, a level more quiet than it thinks of itself. At its own debug level it repeats
/// prompts, which are private: those lines are left away unless prompts may be logged.
extern "C" fn log_line(level: sys::sd_log_level_t, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: the engine passes a string that is ended by a NUL and valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim_end();
    let level = match level {
        sys::sd_log_level_t::SD_LOG_ERROR => log::Level::Error,
        sys::sd_log_level_t::SD_LOG_WARN => log::Level::Warn,
        sys::sd_log_level_t::SD_LOG_INFO => log::Level::Debug,
        _ => log::Level::Trace,
    };
    if level == log::Level::Error && ["alloc", "out of memory"].iter().any(|sign| text.contains(sign)) {
        OUT_OF_MEMORY.store(true, Ordering::Relaxed);
    }
    let part_failed = text.contains("loading ") && text.ends_with("' failed");
    if level == log::Level::Warn && (part_failed || text.contains("No text encoders provided")) {
        PART_MISSING.store(true, Ordering::Relaxed);
    }
    if level < log::Level::Trace || logger::shows_prompts() {
        log::log!(level, "engine: {text}");
    }
}

/// Passes on how far the engine is. Whether it is to go on.
extern "C" fn progress(phase: sys::sdcpp_phase, step: c_int, steps: c_int, _: *mut c_void) -> bool {
    let phase = match phase {
        sys::sdcpp_phase::SDCPP_PHASE_LOAD => Phase::Load,
        sys::sdcpp_phase::SDCPP_PHASE_ENCODE => Phase::Encode,
        sys::sdcpp_phase::SDCPP_PHASE_DECODE => Phase::Decode,
        _ => Phase::Sample,
    };
    log::trace!("engine: {phase:?}: {step} of {steps}");
    CONTROL.with_borrow(|control| {
        control.report(phase, u32::try_from(step).unwrap_or(0), u32::try_from(steps).unwrap_or(0));
        !control.is_cancelled()
    })
}
