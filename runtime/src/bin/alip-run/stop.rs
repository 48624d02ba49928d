//! Being asked to stop.
//!
//! Ctrl-C, a closed terminal and whoever ends processes in order ask alike: finish the step, save, exit. Only a second Ctrl-C
//! ends the program at once; a terminal that closes may say so twice.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::Outcome;

/// What a stopped program returns is this and the signal's number, as shells have it.
const SIGNALLED: usize = 128;

/// Often enough that a person who presses Ctrl-C is answered at once.
const LOOK: Duration = Duration::from_millis(50);

/// How long stopping waits for its answer to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether somebody asked to stop, and was answered.
pub(crate) struct Stop {
    /// Set after the answer was written, so that it stands before whatever is said about what was stopped.
    answered: Arc<AtomicBool>,
    status: Arc<AtomicUsize>,
}

impl Stop {
    /// Listens from now on; `says` what will be done about it.
    pub(crate) fn listen(says: &'static str) -> Outcome<Stop> {
        let asked = Arc::new(AtomicBool::new(false));
        let stop = Stop { answered: Arc::new(AtomicBool::new(false)), status: Arc::new(AtomicUsize::new(0)) };
        // In this order: the first finds nothing asked yet.
        flag::register_conditional_shutdown(SIGINT, SIGNALLED as i32 + SIGINT, Arc::clone(&asked))?;
        for signal in [Some(SIGINT), Some(SIGTERM), hang_up()].into_iter().flatten() {
            flag::register_usize(signal, Arc::clone(&stop.status), SIGNALLED + signal as usize)?;
            flag::register(signal, Arc::clone(&asked))?;
        }
        let answered = Arc::clone(&stop.answered);
        std::thread::Builder::new().name("stop".into()).spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
            }
            // Whoever reads the answer may have stopped reading: then nobody waits for it.
            let (said, heard) = mpsc::channel();
            std::thread::spawn(move || {
                note!("{says}; Ctrl-C once more ends it at once");
                let _ = said.send(());
            });
            let _ = heard.recv_timeout(PATIENCE);
            answered.store(true, Ordering::Relaxed);
        })?;
        Ok(stop)
    }

    /// Set when somebody asked, within [`LOOK`].
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.answered
    }

    /// What a command returns that nobody asked to stop, or the status of one that was, whatever became of its work.
    pub(crate) fn ended(&self, done: Outcome) -> Outcome {
        match done {
            Err(failure) if self.flag().load(Ordering::Relaxed) => {
                note!("{failure}");
                Ok(self.status())
            }
            done => done,
        }
    }

    /// The exit status of a program that was asked to stop.
    pub(crate) fn status(&self) -> ExitCode {
        let status = self.status.load(Ordering::Relaxed);
        ExitCode::from(u8::try_from(status).ok().filter(|status| *status > 0).unwrap_or(1))
    }
}

/// The signal of a terminal that closes, unless it is to be ignored: `nohup` means a run to go on.
#[cfg(unix)]
fn hang_up() -> Option<i32> {
    use signal_hook::consts::SIGHUP;
    // SAFETY: an all-zero sigaction is a value of it, and the call writes no more than that.
    let ignored = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(SIGHUP, std::ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    };
    (!ignored).then_some(SIGHUP)
}

#[cfg(not(unix))]
fn hang_up() -> Option<i32> {
    None
}
