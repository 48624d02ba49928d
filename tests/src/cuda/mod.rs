//! CUDA without a card: kernels' texts compiled by the machine's C++ compiler and run by an emulator
//! (`tests/cuda_emulator`), which reports what a card would not tell: races, reads of what nobody wrote, accesses outside
//! their memory, divergent barriers.

mod build;
mod compiler;
mod device;
mod emulator;
mod nvrtc;
mod standin;

pub use build::Text;
pub use device::{Open, device, device_for};
pub use emulator::{Emulator, Module, Operand, Outcome};
pub use nvrtc::{Nvrtc, Taken};
pub use standin::StandIn;
