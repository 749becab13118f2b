//! stable-diffusion.cpp.
