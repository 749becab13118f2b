//! stable-diffusion.cpp behind a safe handle.
//!
//! The engine is made, used and freed by one thread, the worker's. Its callbacks are process-wide,
//! so there is one engine in a process.
#![allow(unsafe_code, reason = "the one module of this crate that calls C")]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use sdcpp_sys as sys;
use weave_core::error::ErrorCode;
use weave_core::limits::{MAX_SIDE, MIN_SIDE};
use weave_core::request::Params;
use weave_core::response::ImageSize;

use super::device::{self, Device};
use super::memory::{Learned, Pool, Said, Shape};
use super::tuning::{self, MemoryLimit, Tiling, Tuning};
use super::{Engine, EngineError, Generation, Image, Reading};
use crate::logger;
use crate::model::{ModelFiles, Stamps};
use crate::proc::MemoryFiles;
use crate::scoreboard::{Control, Phase};

/// Whether the engine has logged that an allocation failed, since this was last cleared.
static OUT_OF_MEMORY: AtomicBool = AtomicBool::new(false);

/// Whether the engine has warned that it could not load a part of the model. It goes on without it,
/// and an image without its text encoder has nothing to do with the prompt.
static PART_MISSING: AtomicBool = AtomicBool::new(false);

/// What the engine has said of its memory since this was last taken.
static SAID: Mutex<Said> = Mutex::new(Said::new());

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
    model: ModelFiles,
    /// The files as they were when the context was made.
    stamps: Stamps,
    tuning: Tuning,
    threads: u16,
    learned: Learned,
    memory: Option<MemoryFiles>,
    /// The engine reads a part of the model when it first needs it: all of them for an image.
    has_drawn: bool,
}

impl Sdcpp {
    /// Makes a context for these model files.
    ///
    /// # Errors
    /// A sentence that says why not; what the engine itself had to say is in the log.
    pub fn load(model: ModelFiles, tuning: Tuning, threads: u16, control: &Control) -> Result<Self, String> {
        CONTROL.set(control.clone());
        let mut stamps = Stamps::of(&model);
        let context = Some(Context::new(&model, &tuning, threads)?);
        if let Some(what) = stamps.look_again(&model).first() {
            return Err(format!("{what} has changed while it was loaded"));
        }
        let (learned, memory) = (Learned::default(), MemoryFiles::open());
        Ok(Self { context, model, stamps, tuning, threads, learned, memory, has_drawn: false })
    }

    /// The engine knows by now where in the files each tensor is, and reads most of them for the first image only. Files
    /// that aren't the same any more are checked as others, and the context is made anew.
    fn notice_changes(&mut self) -> Result<(), String> {
        if self.context.is_none() || self.reading() == Reading::Done {
            return Ok(());
        }
        if let Some(what) = self.stamps.look_again(&self.model).first() {
            log::warn!("{what} has changed since it was checked: checking it and loading the model again");
            self.context = None;
            self.model.check().map_err(|error| error.to_string())?;
            self.context = Some(Context::new(&self.model, &self.tuning, self.threads)?);
        }
        Ok(())
    }

    /// Makes the context anew if the last one is gone.
    fn recover(&mut self) -> Result<(), String> {
        if self.context.is_none() {
            log::warn!("engine: reloading the model, because the last failure left it in an unknown state");
            self.context = Some(Context::new(&self.model, &self.tuning, self.threads)?);
        }
        Ok(())
    }

    /// How an image is made such that it fits.
    ///
    /// # Errors
    /// OUT_OF_MEMORY: it does not fit.
    fn shape(&self, generation: &Generation<'_>) -> Result<Shape, EngineError> {
        let tile = Some(u32::from(self.tuning.vae_tile_size) * 8);
        let Params { width, height, .. } = generation.params;
        let whole = Shape { width, height, tile: None };
        let tiled = Shape { tile, ..whole };
        if self.tuning.tiles(width, height) {
            return self.check(tiled);
        }
        let result = self.check(whole);
        if self.tuning.vae_tiling == Tiling::Auto && result.is_err() && self.check(tiled).is_ok() {
            log::info!("decoding this image in tiles, because there is not enough memory to decode it whole");
            return Ok(tiled);
        }
        result
    }

    fn check(&self, shape: Shape) -> Result<Shape, EngineError> {
        for pool in Pool::ALL {
            let limit = match self.tuning.memory_limit {
                MemoryLimit::Off => return Ok(shape),
                MemoryLimit::Free => u64::MAX,
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0.001 to 1024")]
                MemoryLimit::Gib(limit) => (f64::from(limit) * f64::from(1 << 30)) as u64,
            };
            // Without an image before there is nothing to go by. With one, the GPU may be asked: it has
            // made room for this process, and does not abort it.
            let Some(need) = self.learned.need(shape, pool).filter(|need| *need > 0) else { continue };
            let memory = match pool {
                Pool::Ram => self.memory.as_ref().and_then(MemoryFiles::read),
                Pool::Vram => self.context.as_ref().and_then(|context| context.gpu).and_then(device::memory),
            };
            let Some(memory) = memory else { continue };
            let free = memory.free.min(limit);
            log::debug!(
                "memory: {} of {} MB of {} free; this image takes about {} MB",
                memory.free >> 20,
                memory.total >> 20,
                pool.name(),
                need >> 20
            );
            if need > free {
                return Err(self.no_room(shape, pool, need, free));
            }
        }
        Ok(shape)
    }

    fn no_room(&self, shape: Shape, pool: Pool, need: u64, free: u64) -> EngineError {
        let fits = |side: &u32| {
            let square = Shape { width: *side, height: *side, ..shape };
            self.learned.need(square, pool).is_some_and(|need| need <= free)
        };
        let advice = match (MIN_SIDE..=MAX_SIDE).rev().step_by(64).find(fits) {
            Some(side) => format!("ask for {side}×{side} or less"),
            None => "try again when there is more".to_owned(),
        };
        let text = format!(
            "this image takes about {} MB of {} and {} MB are to be had; {advice}",
            need >> 20,
            pool.name(),
            free >> 20
        );
        log::warn!("{text}; see the settings memory_limit, vae_tiling, flash_attention and preset");
        EngineError { code: ErrorCode::OutOfMemory, text }
    }
}

/// A context of the engine: a model and everything it needs.
struct Context {
    handle: NonNull<sys::sd_ctx_t>,
    /// The number of the GPU that computes, if one does.
    gpu: Option<usize>,
}

impl Context {
    fn new(model: &ModelFiles, tuning: &Tuning, threads: u16) -> Result<Self, String> {
        // SAFETY: both have the signatures that the C++ layer calls, and need no data.
        unsafe { sys::sdcpp_set_callbacks(Some(log_line), Some(progress), ptr::null_mut()) };

        if let Some(what) = tuning.without_effect() {
            log::warn!("{what}");
        }
        let gpu = choose_gpu(tuning)?;
        let mut params = default_params()?;
        params.n_threads = c_int::from(threads.cast_signed());
        tune_context(&mut params, tuning)?;
        let strings = Strings::new(model, tuning)?;
        strings.point_from(&mut params);

        PART_MISSING.store(false, Ordering::Relaxed);
        let mut message: Message = [0; _];
        let mut context = ptr::null_mut();
        // SAFETY: the parameters are initialised, the strings they point to live in `strings` until
        // after the call, which copies them, and there is room for the result and the message.
        let status =
            unsafe { sys::sdcpp_ctx_new(&params, &mut context, message.as_mut_ptr().cast(), message.len()) };
        drop(strings);
        match NonNull::new(context) {
            Some(context) if status == sys::sdcpp_status::SDCPP_OK => {
                let engine = Self { handle: context, gpu };
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

/// The number of the GPU that computes, if one does. Logs what computes.
fn choose_gpu(tuning: &Tuning) -> Result<Option<usize>, String> {
    let devices = device::all();
    let device = device::chosen(&devices, tuning)?;
    if let Some(device) = device {
        let chosen_by =
            if tuning.device_of("diffusion").is_some() { ChosenBy::Settings } else { ChosenBy::Engine };
        log_device(device, chosen_by);
    }
    Ok(devices.iter().position(|other| !other.is_cpu && Some(other) == device))
}

/// A context's parameters as the engine would have them.
fn default_params() -> Result<sys::sd_ctx_params_t, String> {
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
    Ok(unsafe { params.assume_init() })
}

/// Sets what the settings have to say about a context, but for its [`Strings`].
fn tune_context(params: &mut sys::sd_ctx_params_t, tuning: &Tuning) -> Result<(), String> {
    params.diffusion_flash_attn = tuning.flash_attention;
    params.max_vram = tuning.max_vram;
    params.stream_layers = tuning.stream_layers;
    params.enable_mmap = tuning.mmap;
    params.flash_attn = tuning.flash_attention_everywhere;
    params.vae_conv_direct = tuning.vae_conv_direct;
    if tuning.weight_type != tuning::AUTO {
        params.wtype = sys::sd_type_t(of_name(tuning.weight_type, sys::sd_type_t::SD_TYPE_COUNT.0, |i| {
            // SAFETY: the function takes any number below the count.
            unsafe { sys::sd_type_name(sys::sd_type_t(i)) }
        })?);
    }
    params.rng_type = sys::rng_type_t(of_name(tuning.rng, sys::rng_type_t::RNG_TYPE_COUNT.0, |i| {
        // SAFETY: the function takes any number.
        unsafe { sys::sd_rng_type_name(sys::rng_type_t(i)) }
    })?);
    Ok(())
}

/// What a context's parameters point to: paths and lists, each where there is one.
struct Strings {
    paths: [Option<CString>; 7],
    lists: [Option<CString>; 3],
}

impl Strings {
    fn new(model: &ModelFiles, tuning: &Tuning) -> Result<Self, String> {
        let of_path = |path: &Option<PathBuf>| path.as_deref().map(c_string).transpose();
        let model = &model.for_engine();
        let of_list = |list: Option<&str>| list.map(CString::new).transpose().map_err(|e| e.to_string());
        Ok(Self {
            paths: [
                of_path(&model.model)?,
                of_path(&model.diffusion_model)?,
                of_path(&model.clip_l)?,
                of_path(&model.clip_g)?,
                of_path(&model.t5xxl)?,
                of_path(&model.vae)?,
                of_path(&model.taesd)?,
            ],
            lists: [
                of_list(tuning.backend_spec().as_deref())?,
                of_list(tuning.params_backend_spec())?,
                of_list(tuning.tensor_type_rules.as_deref())?,
            ],
        })
    }

    /// Has the parameters point to them. They must not be used after `self` is gone.
    fn point_from(&self, params: &mut sys::sd_ctx_params_t) {
        let places = [
            &mut params.model_path,
            &mut params.diffusion_model_path,
            &mut params.clip_l_path,
            &mut params.clip_g_path,
            &mut params.t5xxl_path,
            &mut params.vae_path,
            &mut params.taesd_path,
            &mut params.backend,
            &mut params.params_backend,
            &mut params.tensor_type_rules,
        ];
        for (place, string) in places.into_iter().zip(self.paths.iter().chain(&self.lists)) {
            if let Some(string) = string {
                *place = string.as_ptr();
            }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context came from `sdcpp_ctx_new`, is freed only here, and a message is not
        // wanted, for which null and 0 stand.
        unsafe { sys::sdcpp_ctx_free(self.handle.as_ptr(), ptr::null_mut(), 0) };
    }
}

impl Engine for Sdcpp {
    fn generate(&mut self, generation: &Generation<'_>, control: &Control) -> Result<Image, EngineError> {
        CONTROL.set(control.clone());
        let lost = |error: &str| {
            log::error!("engine: {error}");
            let text = "the engine could not load its model again; the daemon's log says more".to_owned();
            EngineError { code: ErrorCode::GpuError, text }
        };
        self.notice_changes().and_then(|()| self.recover()).map_err(|error| lost(&error))?;
        let shape = self.shape(generation)?;
        let tuning = &self.tuning;
        let context = self.context.as_ref().ok_or_else(|| lost("there is no context"))?;
        let (result, is_sound) = context.generate(generation, shape, tuning);
        if result.is_ok() {
            let said = std::mem::take(&mut *SAID.lock().unwrap_or_else(PoisonError::into_inner));
            self.learned.add(&said, shape, tuning);
            self.has_drawn = true;
        }
        if !is_sound {
            self.context = None;
        }
        result
    }

    fn reading(&self) -> Reading {
        if self.context.is_none() {
            Reading::Again
        } else if self.has_drawn && !self.tuning.keeps_weights_on_disk() {
            Reading::Done
        } else {
            Reading::Before
        }
    }
}

impl Context {
    /// Draws one image, and says whether the context can be used again.
    fn generate(
        &self,
        generation: &Generation<'_>,
        shape: Shape,
        tuning: &Tuning,
    ) -> (Result<Image, EngineError>, bool) {
        // As long as the engine was not called.
        let mut status = sys::sdcpp_status::SDCPP_NULL_ARGUMENT;
        let result = self.draw(generation, shape, tuning, &mut status);
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

    fn draw(
        &self,
        generation: &Generation<'_>,
        shape: Shape,
        tuning: &Tuning,
        status: &mut sys::sdcpp_status,
    ) -> Result<Image, EngineError> {
        let internal = |text: String| EngineError { code: ErrorCode::Internal, text };
        let prompt =
            CString::new(generation.prompt).map_err(|_| internal("the prompt has a NUL".to_owned()))?;
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
        params.width = side(generation.params.width)?;
        params.height = side(generation.params.height)?;
        // All 64 bits count; the C++ layer refuses what an engine built elsewhere would replace.
        params.seed = generation.params.seed.cast_signed();
        params.sample_params.sample_steps = side(generation.params.steps)?;
        params.sample_params.guidance.txt_cfg = generation.params.cfg_scale;
        tune(&mut params, tuning, shape).map_err(internal)?;

        OUT_OF_MEMORY.store(false, Ordering::Relaxed);
        SAID.lock().unwrap_or_else(PoisonError::into_inner).start_image();
        let mut image = sys::sd_image_t { width: 0, height: 0, channel: 0, data: ptr::null_mut() };
        // SAFETY: the context is alive and used by this thread alone, the parameters are
        // initialised and the strings in them outlive the call, and there is room for the results.
        *status = unsafe {
            sys::sdcpp_generate(
                self.handle.as_ptr(),
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
                let Params { width, height, .. } = generation.params;
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

/// Sets what the settings have to say about a generation.
fn tune(params: &mut sys::sd_img_gen_params_t, tuning: &Tuning, shape: Shape) -> Result<(), String> {
    let sample = &mut params.sample_params;
    if tuning.sampler != tuning::AUTO {
        let count = sys::sample_method_t::SAMPLE_METHOD_COUNT.0;
        sample.sample_method = sys::sample_method_t(of_name(tuning.sampler, count, |i| {
            // SAFETY: the function takes any number.
            unsafe { sys::sd_sample_method_name(sys::sample_method_t(i)) }
        })?);
    }
    if tuning.scheduler != tuning::AUTO {
        let count = sys::scheduler_t::SCHEDULER_COUNT.0;
        sample.scheduler = sys::scheduler_t(of_name(tuning.scheduler, count, |i| {
            // SAFETY: the function takes any number.
            unsafe { sys::sd_scheduler_name(sys::scheduler_t(i)) }
        })?);
    }
    if let Some(shift) = tuning.flow_shift {
        sample.flow_shift = shift;
    }
    params.vae_tiling_params.enabled = shape.tile.is_some();
    params.vae_tiling_params.tile_size_x = c_int::from(tuning.vae_tile_size.cast_signed());
    params.vae_tiling_params.tile_size_y = c_int::from(tuning.vae_tile_size.cast_signed());
    params.vae_tiling_params.target_overlap = tuning.vae_tile_overlap;
    Ok(())
}

/// The value that the engine has for a name, as it tells it by value.
fn of_name(name: &str, count: u32, tell: impl Fn(u32) -> *const c_char) -> Result<u32, String> {
    let is = |value: &u32| {
        let told = tell(*value);
        // SAFETY: the engine's names are constants that end with a NUL.
        !told.is_null() && unsafe { CStr::from_ptr(told) }.to_bytes() == name.as_bytes()
    };
    (0..count).find(is).ok_or_else(|| format!("this engine knows no {name:?}"))
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

/// Who has chosen the device that computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ChosenBy {
    Settings,
    Engine,
}

/// Logs which device computes, so that users notice when it is not their GPU.
fn log_device(device: &Device, chosen_by: ChosenBy) {
    let Device { name, description, .. } = device;
    if !device.is_cpu {
        log::info!("computing on {name} ({description})");
        return;
    }
    log::info!("computing on the CPU ({description})");
    let for_gpus: Vec<_> = sys::ENGINE.back_ends.iter().copied().filter(|name| *name != "cpu").collect();
    if chosen_by == ChosenBy::Engine && !for_gpus.is_empty() {
        log::warn!(
            "this weaved was built for {} too, but found no such device, so images take long; check the driver \
             (CUDA: nvidia-smi) and the permissions of its devices",
            for_gpus.join(" and ")
        );
    }
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
    SAID.lock().unwrap_or_else(PoisonError::into_inner).hear(text);
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
