//! The threads of downloads. Owns: starting them, and keeping a few that wait for the next one: an
//! image has many small layers, and a thread for each costs as much as writing one. Must not: know
//! what a job does, or how many there may be.
//!
//! Lock: the jobs that wait, held to push or to take one.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crate::locked::{Locked as _, TimedWait as _};

/// Threads that wait for a job at the most: as many as the layers that a few clients pull at a
/// time. Each keeps some pages of its stack.
const IDLE_MAX: usize = 16;
/// A thread ends after waiting for so long: the layers of an image come within seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Stack of a thread: TLS and hashing.
const STACK_BYTES: usize = 256 * 1024;

/// What a thread is to do. It must not panic: the thread would end with it.
pub(super) type FillJob = Box<dyn FnOnce() + Send>;

/// Threads named `fill-N`.
#[derive(Default)]
pub(super) struct Crew {
    waiting: Mutex<CrewState>,
    added: Condvar,
}

#[derive(Default)]
struct CrewState {
    /// At most one for each idle thread.
    jobs: VecDeque<FillJob>,
    idle: usize,
    /// Threads started so far.
    started: u64,
}

impl Crew {
    /// Has a thread do the job: one that waits, or a new one.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn run(self: &Arc<Self>, job: FillJob) -> io::Result<()> {
        let mut waiting = self.waiting.locked();
        if waiting.idle > waiting.jobs.len() {
            waiting.jobs.push_back(job);
            self.added.notify_one();
            return Ok(());
        }
        waiting.started += 1;
        let name = format!("fill-{}", waiting.started);
        drop(waiting);
        let crew = Arc::clone(self);
        let work = move || {
            let mut next = Some(job);
            while let Some(job) = next {
                job();
                next = crew.wait();
            }
        };
        let thread = Builder::new().name(name).stack_size(STACK_BYTES);
        thread.spawn(work).map(|_| ())
    }

    /// The next job; none when none comes, or enough threads wait for one.
    fn wait(&self) -> Option<FillJob> {
        let mut waiting = self.waiting.locked();
        if waiting.idle >= IDLE_MAX {
            return None;
        }
        waiting.idle += 1;
        let until = Instant::now() + IDLE_TIMEOUT;
        let has_job = |waiting: &CrewState| !waiting.jobs.is_empty();
        waiting = self.added.wait_until(waiting, until, has_job);
        waiting.idle -= 1;
        waiting.jobs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    use super::*;

    /// Runs a job that says its thread's name, and then waits for the word to end.
    fn run(crew: &Arc<Crew>, end: Receiver<()>) -> String {
        let (said, name) = channel();
        let job = move || {
            said.send(thread::current().name().unwrap().to_owned())
                .unwrap();
            let _ = end.recv();
        };
        crew.run(Box::new(job)).unwrap();
        name.recv().unwrap()
    }

    fn wait_for_idle(crew: &Crew, count: usize) {
        while crew.waiting.locked().idle != count {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_thread_that_is_done_takes_the_next_job() {
        let crew = Arc::<Crew>::default();
        for _ in 0..5 {
            let (_, end) = channel();
            assert_eq!(run(&crew, end), "fill-1");
            wait_for_idle(&crew, 1);
        }
    }

    #[test]
    fn no_job_waits_for_another_and_few_threads_stay() {
        let crew = Arc::<Crew>::default();
        let (held, ends): (Vec<_>, Vec<_>) = (0..IDLE_MAX + 4).map(|_| channel()).unzip();
        // Each of them runs while all others do.
        let mut names: Vec<_> = ends.into_iter().map(|end| run(&crew, end)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), IDLE_MAX + 4);
        drop(held);
        wait_for_idle(&crew, IDLE_MAX);
        // They do as much again, and no new one does.
        let (held, ends): (Vec<_>, Vec<_>) = (0..IDLE_MAX).map(|_| channel()).unzip();
        let again: Vec<_> = ends.into_iter().map(|end| run(&crew, end)).collect();
        assert!(again.iter().all(|name| names.contains(name)), "{again:?}");
        drop(held);
    }
}
