//! Following: what other members' directories hold counts as there.
//!
//! Owns: which directories are followed, how often they are looked at, and the thread that does it.
//! Never does: take a lock on a directory, write to one, or make a call wait for a slow disk beyond
//! the time of a transfer. Invariants: a lookup holds no lock of another room; nothing is delivered
//! that `Followed::confirm` has not said yes to after its bytes were read and their tag compared.
//!
//! `sources` finds the directories, `reads` brings bytes, `fetch` delivers them.

mod fetch;
mod reads;
mod sources;

use super::config::{Following, StoreConfig};
use crate::key::Key;
use crate::ssd::follow::{Followed, Index, Known, Looked, walk};
use crate::stats::SsdStats;
use reads::Reads;
use sources::Sources;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Directories are looked at so often while anybody asks, and so often else.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const IDLE_LOOK_EVERY: Duration = Duration::from_secs(5);
/// After the last question the pace is kept for so long.
const ASKED_US: u64 = 2_000_000;
/// New members are looked for so often.
const LIST_EVERY_US: u64 = 1_000_000;
/// An open waits so long for the first look, and a question for one where the last is too long ago;
/// a look that is not there by then is waited for by nobody.
const LOOK_WAIT: Duration = Duration::from_secs(1);
/// Directories that are followed at most.
const FOLLOWED_MAX: usize = 64;
/// Looks of a store without a thread, at one question.
const LOOKS_MAX: u32 = 64;
/// A directory whose disk did not answer in time is not asked for so long.
const REST_US: u64 = 10_000_000;
/// A close waits so long for the thread; one that hangs in the kernel is left behind.
const END_WAIT: Duration = Duration::from_secs(1);

/// A followed directory, and until when its disk is left alone.
pub(super) struct Member {
    followed: Followed,
    rests_until_us: AtomicU64,
    /// The last look could not tell what it is: no question is worth a look at it.
    unsure: AtomicBool,
}

/// A block in a followed directory.
pub(super) struct Found {
    member: Arc<Member>,
    slot: u32,
    pub(super) known: Known,
}

/// What the thread and its callers tell each other.
#[derive(Default)]
struct Pace {
    /// The thread sleeps until somebody asks.
    idle: bool,
    looks: u64,
    /// A look was waited for in vain, and has not ended yet.
    late: bool,
    ended: bool,
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    hit_bytes: AtomicU64,
    bad: AtomicU64,
    /// Of directories that are not followed any more.
    pages: AtomicU64,
    scans: AtomicU64,
}

/// All that a store follows.
pub(super) struct Follow {
    sources: Sources,
    block_bytes: u32,
    replicated: bool,
    born: Instant,
    members: RwLock<Arc<[Arc<Member>]>>,
    /// Paths that can't be followed, and why.
    reasons: Mutex<BTreeMap<PathBuf, String>>,
    /// When members are looked for next; held by who looks.
    list_at_us: Mutex<u64>,
    pace: Mutex<Pace>,
    paced: Condvar,
    asked_us: AtomicU64,
    closed: AtomicBool,
    threaded: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    reads: Reads,
    counts: Counts,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Follow {
    /// What this configuration follows, once looked at.
    pub(super) fn open(config: &StoreConfig, stride_bytes: u32) -> Option<Arc<Self>> {
        let ssd = config.ssd.as_ref().filter(|ssd| ssd.follow != Following::Nobody)?;
        let follow = Arc::new(Self {
            sources: Sources::new(ssd),
            block_bytes: config.block_bytes as u32,
            replicated: ssd.replicated,
            born: Instant::now(),
            members: RwLock::new(Arc::new([])),
            reasons: Mutex::default(),
            list_at_us: Mutex::default(),
            pace: Mutex::default(),
            paced: Condvar::new(),
            asked_us: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            threaded: AtomicBool::new(false),
            thread: Mutex::default(),
            reads: Reads::new(stride_bytes, !config.deterministic),
            counts: Counts::default(),
        });
        if !config.deterministic {
            follow.start();
        }
        if follow.threaded.load(Ordering::Acquire) {
            follow.wait_for_look(|pace| pace.idle);
        } else {
            follow.look_here();
        }
        Some(follow)
    }

    fn start(self: &Arc<Self>) {
        let follow = Arc::clone(self);
        let thread = std::thread::Builder::new().name("keystow-follow".to_owned());
        // Without a thread whoever asks looks.
        if let Ok(thread) = thread.spawn(move || follow.run()) {
            self.threaded.store(true, Ordering::Release);
            *lock(&self.thread) = Some(thread);
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn run(&self) {
        while !self.closed.load(Ordering::Acquire) {
            let more = self.look();
            let mut pace = lock(&self.pace);
            pace.looks += 1;
            pace.late = false;
            self.paced.notify_all();
            if more || self.closed.load(Ordering::Acquire) {
                continue;
            }
            let asked_us = self.asked_us.load(Ordering::Acquire);
            let busy = self.replicated || self.now_us().saturating_sub(asked_us) < ASKED_US;
            pace.idle = true;
            self.paced.notify_all();
            let pause = if busy { LOOK_EVERY } else { IDLE_LOOK_EVERY };
            let asked = |pace: &mut Pace| pace.idle && !self.closed.load(Ordering::Acquire);
            let woken = self.paced.wait_timeout_while(pace, pause, asked);
            woken.unwrap_or_else(PoisonError::into_inner).0.idle = false;
        }
        lock(&self.pace).ended = true;
        self.paced.notify_all();
    }

    /// Looks at everything once; whether there is more to be read at once.
    fn look(&self) -> bool {
        let mut list_at_us = lock(&self.list_at_us);
        if self.now_us() >= *list_at_us {
            self.list();
            *list_at_us = self.now_us() + LIST_EVERY_US;
        }
        let mut more = false;
        for member in self.members().iter() {
            let looked = member.followed.look(&|| self.now_us());
            member.unsure.store(looked == Looked::Unsure, Ordering::Release);
            match looked {
                Looked::More => more |= member.followed.is_urgent(),
                // Another one may have its name.
                Looked::Gone => {
                    *list_at_us = 0;
                    more = true;
                }
                Looked::Whole | Looked::Unsure => {}
            }
        }
        more
    }

    /// Opens what is new, and drops what is gone.
    fn list(&self) {
        let mut reasons = BTreeMap::new();
        let places = self.sources.find(&mut reasons);
        let before = self.members();
        let mut members: Vec<Arc<Member>> = Vec::with_capacity(places.len());
        for (root, name) in places {
            let path = self.sources.path(&root, &name);
            if members.len() == FOLLOWED_MAX {
                reasons.insert(path, format!("only {FOLLOWED_MAX} directories are followed"));
                continue;
            }
            let there = before.iter().find(|it| it.followed.path == path);
            if let Some(there) = there.filter(|it| !it.followed.is_gone()) {
                members.push(Arc::clone(there));
                continue;
            }
            match Followed::open(&root, self.sources.fingerprint, &name) {
                Ok(followed) => {
                    let (rests_until_us, unsure) = (AtomicU64::new(0), AtomicBool::new(false));
                    members.push(Arc::new(Member { followed, rests_until_us, unsure }));
                }
                Err(error) => {
                    reasons.insert(path, error.message);
                }
            }
        }
        *lock(&self.reasons) = reasons;
        self.set_members(members.into());
    }

    /// From now on these are followed; the counts of others are kept.
    fn set_members(&self, members: Arc<[Arc<Member>]>) {
        let before = self.members();
        for member in before.iter().filter(|it| !members.iter().any(|new| Arc::ptr_eq(it, new))) {
            let looks = &member.followed.looks;
            self.counts.pages.fetch_add(looks.pages.load(Ordering::Relaxed), Ordering::Relaxed);
            self.counts.scans.fetch_add(looks.scans.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members;
    }

    fn members(&self) -> Arc<[Arc<Member>]> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a look that ends as wanted, `LOOK_WAIT` at most.
    fn wait_for_look(&self, done: impl Fn(&Pace) -> bool) {
        let still = |pace: &mut Pace| !done(pace) && !pace.ended;
        let waited = self.paced.wait_timeout_while(lock(&self.pace), LOOK_WAIT, still);
        let (mut pace, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        pace.late |= waited.timed_out();
    }

    fn look_here(&self) {
        for _ in 0..LOOKS_MAX {
            if !self.look() {
                break;
            }
        }
        self.asked_us.store(self.now_us(), Ordering::Release);
    }

    /// Somebody asks: what is known should be of now.
    fn ask(&self) {
        let (now_us, asked_us) = (self.now_us(), self.asked_us.load(Ordering::Acquire));
        let since_us = now_us.saturating_sub(asked_us);
        if !self.threaded.load(Ordering::Acquire) {
            if since_us >= LOOK_EVERY.as_micros() as u64 {
                self.look_here();
            }
            return;
        }
        // Not with every call: others read the same word.
        if since_us >= ASKED_US / 4 {
            self.asked_us.store(now_us, Ordering::Release);
        }
        let fresh = |it: &Arc<Member>| {
            let hopeless = it.followed.is_gone() || it.unsure.load(Ordering::Acquire);
            hopeless || it.followed.is_fresh(now_us)
        };
        if since_us < ASKED_US && self.members().iter().all(fresh) {
            return;
        }
        let mut pace = lock(&self.pace);
        if !pace.late {
            pace.idle = false;
            // One that has begun may have looked before now.
            let enough = pace.looks + 1;
            drop(pace);
            self.paced.notify_all();
            self.wait_for_look(|pace| pace.looks >= enough);
        }
    }

    /// What can be asked now.
    pub(super) fn view(&self) -> View {
        self.ask();
        let now_us = self.now_us();
        let counts = |it: &&Arc<Member>| {
            it.followed.is_fresh(now_us) && now_us >= it.rests_until_us.load(Ordering::Acquire)
        };
        let members = self.members().iter().filter(counts).map(Arc::clone).collect();
        View { members, block_bytes: self.block_bytes }
    }

    /// Whether what others hold is not to be written to one's own SSD.
    pub(super) fn is_replicated(&self) -> bool {
        self.replicated
    }

    /// Whether a followed directory has this block, as far as is known; waits for nothing.
    pub(super) fn holds(&self, key: &Key) -> bool {
        let now_us = self.now_us();
        let fresh = |it: &&Arc<Member>| it.followed.is_fresh(now_us);
        self.members().iter().filter(fresh).any(|it| it.followed.index().find(key).is_some())
    }

    /// Adds what it counts, and what it can't do.
    pub(super) fn tell(&self, stats: &mut SsdStats, fallbacks: &mut Vec<String>) {
        let (members, counts) = (self.members(), &self.counts);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let sum = |of: &dyn Fn(&Followed) -> u64| members.iter().map(|it| of(&it.followed)).sum();
        let sum_of = |of: &dyn Fn(&Followed) -> u64| -> u64 { sum(of) };
        stats.followed_members = members.iter().filter(|it| !it.followed.is_gone()).count() as u64;
        stats.followed_hits = read(&counts.hits);
        stats.followed_hit_bytes = read(&counts.hit_bytes);
        stats.followed_bad = read(&counts.bad);
        stats.followed_pages = read(&counts.pages) + sum_of(&|it| read(&it.looks.pages));
        stats.followed_scans = read(&counts.scans) + sum_of(&|it| read(&it.looks.scans));
        stats.followed_index_bytes = sum_of(&|it| it.index().bytes());
        let reasons = lock(&self.reasons);
        fallbacks.extend(reasons.iter().map(|(path, why)| {
            format!("{} is not followed: {}", path.display(), why.trim_end_matches('.'))
        }));
    }

    /// Ends the thread and gives the files back, as far as nobody reads from them.
    pub(super) fn stop(&self) {
        self.closed.store(true, Ordering::Release);
        // Under the lock: the thread is either before its check or in its wait.
        drop(lock(&self.pace));
        self.paced.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            let waited =
                self.paced.wait_timeout_while(lock(&self.pace), END_WAIT, |pace| !pace.ended);
            let ended = waited.is_ok_and(|(pace, _)| pace.ended);
            if ended {
                // A panic in it left what it had seen, which grows old.
                drop(thread.join());
            }
        }
        self.reads.stop(END_WAIT);
        self.set_members(Arc::new([]));
    }

    /// In a forked child: the threads are the parent's.
    pub(super) fn forget(&self) {
        if let Ok(mut thread) = self.thread.try_lock() {
            std::mem::forget(thread.take());
        }
        self.reads.forget();
    }
}

/// The directories that one call asks.
pub(super) struct View {
    members: Vec<Arc<Member>>,
    block_bytes: u32,
}

impl View {
    /// Hands each key's block to `visit` where there is one, until it says false; how many keys
    /// were passed.
    fn walk(
        &self,
        keys: &[Key],
        visit: impl FnMut(usize, Option<(usize, u32, &Known)>) -> bool,
    ) -> usize {
        let indexes: Vec<RwLockReadGuard<'_, Index>> =
            self.members.iter().map(|member| member.followed.index()).collect();
        walk(&indexes, keys, |known| known.len <= self.block_bytes, visit)
    }

    /// The leading run that is there; `visit` gets each of its blocks.
    pub(super) fn leading(&self, keys: &[Key], mut visit: impl FnMut(&Known)) -> usize {
        if self.members.is_empty() {
            return 0;
        }
        self.walk(keys, |_, found| found.inspect(|(_, _, known)| visit(known)).is_some())
    }

    /// The same with what it takes to read them.
    fn leading_found(&self, keys: &[Key]) -> Vec<Found> {
        let mut run = Vec::new();
        if !self.members.is_empty() {
            self.walk(keys, |_, found| {
                run.extend(found.map(|found| self.found(found)));
                found.is_some()
            });
        }
        run
    }

    /// What is there of some keys, by number.
    fn each_found(&self, keys: &[Key]) -> Vec<(usize, Found)> {
        let mut all = Vec::new();
        if !self.members.is_empty() {
            self.walk(keys, |at, found| {
                all.extend(found.map(|found| (at, self.found(found))));
                true
            });
        }
        all
    }

    /// Whether each key's block is there.
    pub(super) fn contains(&self, keys: &[Key]) -> Vec<bool> {
        let mut there = vec![false; keys.len()];
        if !self.members.is_empty() {
            self.walk(keys, |at, found| {
                there[at] = found.is_some();
                true
            });
        }
        there
    }

    fn found(&self, (member, slot, known): (usize, u32, &Known)) -> Found {
        Found { member: Arc::clone(&self.members[member]), slot, known: *known }
    }
}
