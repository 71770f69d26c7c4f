//! Tests of admission: the budget holds, reasons and second requests count, all of it bounded.

use super::*;
use proptest::prelude::*;

const NOTHING: Reasons = Reasons { hit: false, child_on_ssd: false, hinted: false };
const HIT: Reasons = Reasons { hit: true, ..NOTHING };
const HINTED: Reasons = Reasons { hinted: true, ..NOTHING };
const CHILD: Reasons = Reasons { child_on_ssd: true, ..NOTHING };

/// 1,000 bytes a second, blocks of 100.
fn admission(places: u64) -> Admission {
    let config = AdmitConfig { write_bytes_per_s: Some(1000), block_bytes: 100, places };
    Admission::new(&config, 0)
}

/// As above with nothing left in the bucket at time 0.
fn dry() -> Admission {
    let mut it = admission(100);
    assert_eq!(it.decide(0, 1000, NOTHING, [0, 0]), Verdict::Write);
    it
}

#[test]
fn without_a_budget_everything_is_written() {
    let config = AdmitConfig { write_bytes_per_s: None, block_bytes: 100, places: 10 };
    let mut it = Admission::new(&config, 0);
    for key in 0..1000 {
        assert_eq!(it.decide(0, u64::MAX, NOTHING, [key, 0]), Verdict::Write);
    }
    assert_eq!(it.counts(), AdmitCounts { written_under: 1000, ..AdmitCounts::default() });
}

#[test]
fn the_bucket_fills_with_time_and_never_over() {
    let mut it = dry();
    assert_eq!(it.decide(0, 1, NOTHING, [1, 0]), Verdict::Refuse);
    assert_eq!(it.decide(99_999, 100, NOTHING, [2, 0]), Verdict::Refuse);
    assert_eq!(it.decide(100_000, 100, NOTHING, [3, 0]), Verdict::Write);
    assert_eq!(it.decide(100_000, 1, NOTHING, [4, 0]), Verdict::Refuse);
    // A second's worth is the most that waits, however long nobody wrote.
    assert_eq!(it.decide(90_000_000, 1000, NOTHING, [5, 0]), Verdict::Write);
    assert_eq!(it.decide(90_000_000, 1, NOTHING, [6, 0]), Verdict::Refuse);
    assert_eq!(it.decide(10, 1, NOTHING, [7, 0]), Verdict::Refuse, "time that runs back");
    assert_eq!(it.decide(90_000_000, 1, NOTHING, [8, 0]), Verdict::Refuse, "is not paid twice");
    assert_eq!(it.counts(), AdmitCounts { written_under: 3, written_over: 0, refused: 6 });
}

#[test]
fn time_is_not_lost_to_rounding() {
    let config = AdmitConfig { write_bytes_per_s: Some(3), block_bytes: 1, places: 0 };
    let mut it = Admission::new(&config, 0);
    let written = (0..=10_000_000)
        .step_by(1000)
        .filter(|now_us| it.decide(*now_us, 1, NOTHING, [*now_us, 0]) == Verdict::Write)
        .count();
    assert_eq!(written, 4 + 30);
}

#[test]
fn reasons_write_ahead_of_the_budget_down_to_a_bound() {
    for reasons in [HIT, HINTED] {
        let mut it = dry();
        assert_eq!(it.decide(0, 3000, reasons, [1, 0]), Verdict::Write);
        assert_eq!(it.decide(0, 1001, reasons, [2, 0]), Verdict::Refuse);
        assert_eq!(it.decide(0, 1000, reasons, [3, 0]), Verdict::Write);
        assert_eq!(it.decide(0, 1, reasons, [4, 0]), Verdict::Refuse);
        assert_eq!(it.decide(4_000_000, 1, NOTHING, [5, 0]), Verdict::Refuse, "debt is paid first");
        assert_eq!(it.decide(4_001_000, 1, NOTHING, [6, 0]), Verdict::Write);
        assert_eq!(it.counts(), AdmitCounts { written_under: 2, written_over: 2, refused: 3 });
    }
}

#[test]
fn a_child_on_the_disk_is_always_reason_enough() {
    let mut it = dry();
    for key in 0..100 {
        assert_eq!(it.decide(0, 1000, CHILD, [key, 0]), Verdict::Write);
    }
    assert_eq!(it.decide(0, 1, HIT, [200, 0]), Verdict::Refuse);
    // The debt has a bound, so that others have their turn again.
    assert_eq!(it.decide(4_001_000, 1, NOTHING, [201, 0]), Verdict::Write);
}

#[test]
fn a_second_request_is_a_reason() {
    let mut it = dry();
    assert_eq!(it.decide(0, 100, NOTHING, [7, 9]), Verdict::Refuse);
    assert_eq!(it.decide(0, 100, NOTHING, [7, 8]), Verdict::Refuse);
    assert_eq!(it.decide(0, 100, NOTHING, [7, 9]), Verdict::Write);
    assert_eq!(it.counts(), AdmitCounts { written_under: 1, written_over: 1, refused: 2 });
}

#[test]
fn refusals_are_forgotten_in_their_order() {
    let mut it = admission(2);
    it.decide(0, 1000, NOTHING, [0, 0]);
    for key in 1..=5 {
        assert_eq!(it.decide(0, 10, NOTHING, [key, 0]), Verdict::Refuse);
    }
    // Four are remembered: twice the places. The first is not one of them any more.
    assert_eq!(it.decide(0, 10, NOTHING, [2, 0]), Verdict::Write);
    assert_eq!(it.decide(0, 10, NOTHING, [1, 0]), Verdict::Refuse);
    assert_eq!(it.decide(0, 10, NOTHING, [2, 0]), Verdict::Refuse, "pushed out by the first");
    let nobody = &mut admission(0);
    nobody.decide(0, 1000, NOTHING, [0, 0]);
    for _ in 0..3 {
        assert_eq!(nobody.decide(0, 10, NOTHING, [1, 0]), Verdict::Refuse);
    }
}

#[test]
fn a_chain_longer_than_the_burst_waits_for_a_full_bucket_and_is_paid_for() {
    let mut it = admission(100);
    assert_eq!(it.decide(0, 9000, NOTHING, [1, 0]), Verdict::Write);
    assert_eq!(it.decide(8_000_999, 1, NOTHING, [2, 0]), Verdict::Refuse);
    assert_eq!(it.decide(8_001_000, 1, NOTHING, [3, 0]), Verdict::Write);
    assert_eq!(it.decide(8_900_000, 9000, NOTHING, [4, 0]), Verdict::Refuse);
    // Deeper in debt than the bound, a child is written and the debt stays as it is.
    let mut deep = admission(100);
    deep.decide(0, 9000, NOTHING, [1, 0]);
    assert_eq!(deep.decide(0, 500, CHILD, [2, 0]), Verdict::Write);
    assert_eq!(deep.decide(7_000_000, 1, NOTHING, [3, 0]), Verdict::Refuse);
    assert_eq!(deep.decide(8_001_000, 1, NOTHING, [4, 0]), Verdict::Write);
}

#[test]
fn a_small_budget_still_writes_blocks() {
    let config = AdmitConfig { write_bytes_per_s: Some(1), block_bytes: 100, places: 9 };
    let mut it = Admission::new(&config, 0);
    for key in 0..4 {
        assert_eq!(it.decide(0, 100, NOTHING, [key, 0]), Verdict::Write);
    }
    assert_eq!(it.decide(0, 100, NOTHING, [5, 0]), Verdict::Refuse);
}

#[test]
fn numbers_at_their_ends_are_survived() {
    for rate in [0, 1, u64::MAX] {
        let config =
            AdmitConfig { write_bytes_per_s: Some(rate), block_bytes: u64::MAX, places: u64::MAX };
        let mut it = Admission::new(&config, 0);
        for (now_us, bytes) in [(0, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX), (0, 0)] {
            for reasons in [NOTHING, HIT, CHILD] {
                it.decide(now_us, bytes, reasons, [u64::MAX, now_us]);
            }
        }
    }
}

proptest! {
    /// Whatever is asked, what is written without a child on the disk stays within the burst, the
    /// debt and the rate; memory stays within its bound; every decision is counted once.
    #[test]
    fn the_budget_holds(
        asks in proptest::collection::vec((0..500_000_u64, 1..900_u64, 0..4_u8, 0..30_u64), 1..300),
        places in 0..8_u64,
    ) {
        let mut it = admission(places);
        let (mut now_us, mut written) = (0, 0);
        for (wait_us, bytes, reason, key) in &asks {
            now_us += wait_us;
            let reasons = [NOTHING, NOTHING, HIT, HINTED][*reason as usize];
            if it.decide(now_us, *bytes, reasons, [*key, 1]) == Verdict::Write {
                written += bytes;
            }
            prop_assert!(written <= 1000 + 4000 + now_us / 1000);
            prop_assert!(it.refusals.len() <= 2 * places as usize);
            prop_assert_eq!(it.refused.len(), it.refusals.len());
        }
        let AdmitCounts { written_under, written_over, refused } = it.counts();
        prop_assert_eq!(written_under + written_over + refused, asks.len() as u64);
    }
}
