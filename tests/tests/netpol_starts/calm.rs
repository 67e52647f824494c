//! Did the machine itself stand still, or throw packets away because it was late? Then a packet that had to be sent again
//! says nothing about the agent.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const TICK: Duration = Duration::from_millis(10);
/// A first packet is sent again after a second (RFC 6298, 2.1). Who sleeps and wakes this much too late was not alone in
/// it: timers and packets waited, too.
const LATE: Duration = Duration::from_millis(300);

/// A clock on every processor.
pub struct Calm {
    stalls: Arc<Mutex<Vec<(Instant, Duration)>>>,
    stop: Arc<AtomicBool>,
    clocks: Vec<JoinHandle<()>>,
}

/// A point in time, and what was thrown away until then.
pub struct Before(Instant, u64);

impl Calm {
    pub fn watch() -> Calm {
        let (stalls, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let clock = |cpu| {
            let (stalls, stop) = (stalls.clone(), stop.clone());
            thread::spawn(move || {
                stay_on(cpu);
                let mut last = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(TICK);
                    let now = Instant::now();
                    let late = (now - last).saturating_sub(TICK);
                    if late >= LATE {
                        stalls.lock().unwrap().push((now, late));
                    }
                    last = now;
                }
            })
        };
        let clocks = (0..cpus).map(clock).collect();
        Calm { stalls, stop, clocks }
    }

    pub fn now(&self) -> Before {
        Before(Instant::now(), thrown_away())
    }

    pub fn disturbance_since(&self, before: Before) -> Option<String> {
        // One that is still late is not waited for: the packet counts as lost then.
        let thrown = thrown_away() - before.1;
        let stalls = self.stalls.lock().unwrap();
        let stall = stalls.iter().rfind(|(end, _)| *end >= before.0).map(|(_, late)| *late);
        (thrown > 0 || stall.is_some())
            .then(|| format!("(the machine stood still for {stall:?}, and threw {thrown} packets away)"))
    }
}

impl Drop for Calm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for clock in self.clocks.drain(..) {
            let _ = clock.join();
        }
    }
}

fn stay_on(cpu: usize) {
    // SAFETY: a set of processors is plain bits, for which zeros are valid; CPU_SET stays inside it.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: reads `set`, which is as long as said. Where the processor is not ours to use, the clock runs anywhere.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

/// Packets for which a processor's queue had no room (net/core/net-procfs.c, softnet_seq_show: the second number).
fn thrown_away() -> u64 {
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap();
    text.lines().map(|line| u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()).sum()
}
