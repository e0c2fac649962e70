//! A bucket of images for each caller.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Callers that are told apart at once. Beyond it those are forgotten whose buckets are nearly full, which gains them least.
const MAX_BUCKETS: usize = 1 << 16;

/// Whose images are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// The bearers of a token, by its name.
    Token(Arc<str>),
    /// A client's address, or its network.
    Network(IpAddr),
}

impl Sender {
    /// Of an address: IPv6 by /64, which is what one customer has at the least.
    pub fn of_address(address: IpAddr) -> Self {
        Self::Network(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
            address => address,
        })
    }
}

/// Why images are not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateRefusal {
    /// After this time there would be room for them.
    Wait(Duration),
    /// There never will be: they are more than this.
    Never {
        /// The most in one request.
        burst: u32,
    },
}

/// Lets each sender send so many images a second, and after a pause so many at once.
///
/// A bucket is one number: the moment at which it will be full again. Taking `n` images moves it on by the time in which `n`
/// come back; it may lie ahead by the time of a whole burst. A bucket whose moment has passed is full, as that of a sender
/// who was never seen, and can be forgotten.
#[derive(Debug)]
pub struct RateLimiter {
    nanoseconds_per_image: f64,
    burst: u32,
    start: Instant,
    /// Nanoseconds from `start`.
    full_at: Mutex<HashMap<Sender, u64>>,
}

impl RateLimiter {
    /// At `images_per_second`, above 0, and `burst` at once.
    pub fn new(images_per_second: f64, burst: u32) -> Self {
        let full_at = Mutex::default();
        Self { nanoseconds_per_image: 1e9 / images_per_second, burst, start: Instant::now(), full_at }
    }

    /// Takes `n` images of the sender's bucket, or none.
    ///
    /// # Errors
    /// [`RateRefusal`].
    pub fn take(&self, sender: &Sender, n: usize) -> Result<(), RateRefusal> {
        self.take_at(sender, n, self.start.elapsed())
    }

    /// Whether a single image could be taken now.
    ///
    /// # Errors
    /// [`RateRefusal::Wait`].
    pub fn look(&self, sender: &Sender) -> Result<(), RateRefusal> {
        let now = nanoseconds(self.start.elapsed());
        let full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner).get(sender).copied();
        self.next(full_at, 1, now).map(|_| ())
    }

    fn take_at(&self, sender: &Sender, n: usize, now: Duration) -> Result<(), RateRefusal> {
        let now = nanoseconds(now);
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(full_at) = buckets.get_mut(sender) {
            *full_at = self.next(Some(*full_at), n, now)?;
            return Ok(());
        }
        let full_at = self.next(None, n, now)?;
        if buckets.len() >= MAX_BUCKETS {
            forget(&mut buckets, now);
        }
        buckets.insert(sender.clone(), full_at);
        Ok(())
    }

    /// When a bucket will be full again from which `n` are taken now.
    fn next(&self, full_at: Option<u64>, n: usize, now: u64) -> Result<u64, RateRefusal> {
        if n > self.burst as usize {
            return Err(RateRefusal::Never { burst: self.burst });
        }
        let time_of = |n: f64| (n * self.nanoseconds_per_image) as u64;
        let next = full_at.unwrap_or(now).max(now).saturating_add(time_of(n as f64));
        match next.saturating_sub(now).saturating_sub(time_of(f64::from(self.burst))) {
            0 => Ok(next),
            wait => Err(RateRefusal::Wait(Duration::from_nanos(wait))),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Makes room: the full ones go, and if they are too few, the half that is nearest to it.
fn forget(buckets: &mut HashMap<Sender, u64>, now: u64) {
    buckets.retain(|_, full_at| *full_at > now);
    if buckets.len() > MAX_BUCKETS / 2 {
        let mut moments: Vec<u64> = buckets.values().copied().collect();
        let (_, median, _) = moments.select_nth_unstable(MAX_BUCKETS / 2);
        let median = *median;
        buckets.retain(|_, full_at| *full_at > median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(name: &str) -> Sender {
        Sender::Token(name.into())
    }

    #[test]
    fn a_burst_then_the_rate() {
        let limiter = RateLimiter::new(2.0, 4);
        let take = |n, milliseconds| limiter.take_at(&sender("a"), n, Duration::from_millis(milliseconds));
        assert_eq!(take(3, 0), Ok(()));
        assert_eq!(take(2, 0), Err(RateRefusal::Wait(Duration::from_millis(500))));
        // What was refused has taken nothing.
        assert_eq!(take(1, 0), Ok(()));
        assert_eq!(take(1, 499), Err(RateRefusal::Wait(Duration::from_millis(1))));
        assert_eq!(take(1, 500), Ok(()));
        assert_eq!(take(5, 100_000), Err(RateRefusal::Never { burst: 4 }));
        // A long pause fills the bucket and no more than that.
        assert_eq!(take(4, 100_000), Ok(()));
        assert_eq!(take(1, 100_000), Err(RateRefusal::Wait(Duration::from_millis(500))));
        assert_eq!(limiter.take_at(&sender("b"), 4, Duration::from_secs(100)), Ok(()));
    }

    #[test]
    fn no_flood_of_senders_takes_memory_without_bound_or_frees_the_one_that_sends_most() {
        let limiter = RateLimiter::new(1.0, 10);
        let now = Duration::from_secs(1);
        assert_eq!(limiter.take_at(&sender("greedy"), 10, now), Ok(()));
        for n in 0..3 * MAX_BUCKETS as u128 {
            let address = Sender::of_address(IpAddr::V6(Ipv6Addr::from_bits(n << 64)));
            assert_eq!(limiter.take_at(&address, 1, now), Ok(()));
        }
        assert!(limiter.full_at.lock().unwrap().len() <= MAX_BUCKETS);
        assert!(limiter.take_at(&sender("greedy"), 1, now).is_err());
    }

    #[test]
    fn ipv6_counts_by_network_and_mapped_addresses_as_ipv4() {
        let of = |text: &str| Sender::of_address(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:1.2.3.4"), of("1.2.3.4"));
        assert_ne!(of("1.2.3.4"), of("1.2.3.5"));
    }
}
