//! `--lone-threads`: the session for images that come one at a time.

use serde_json::Value;

use crate::app::{Setup, StandIn, TestApp, guard, image};

const LONE: &str = "equipoise_lone_images_total{model=\"icons30\"}";

/// What heads say of some images, sent one after the other.
async fn results(app: &TestApp) -> Vec<Vec<Value>> {
    let mut all = Vec::new();
    for class in ["key", "star", "book"] {
        all.push(app.classify("?head=joint,crt,tau", image(class, 0)).await.results(0).clone());
    }
    all
}

#[tokio::test]
async fn images_that_come_one_at_a_time_have_more_threads_and_the_same_answers() {
    let without = Setup::new().start();
    let app = Setup::new().config(|config| config.lone_threads = Some(2)).start();
    assert_eq!(results(&app).await, results(&without).await);
    // Nobody was alone before the first.
    assert_eq!((app.metrics().await.get(LONE), without.metrics().await.get(LONE)), (2.0, 0.0));
    for (app, lone_threads) in [(&app, 2), (&without, 1)] {
        let shown = app.get("/v1/models/icons30").await.expect(200).json();
        assert_eq!((&shown["threads"], &shown["lone_threads"]), (&1.into(), &lone_threads.into()));
    }
}

#[tokio::test]
async fn as_many_threads_as_a_session_has_are_no_session_of_their_own() {
    let app = Setup::new().config(|config| (config.threads, config.lone_threads) = (Some(2), Some(2))).start();
    results(&app).await;
    assert_eq!(app.metrics().await.get(LONE), 0.0);
    assert_eq!(app.get("/v1/models/icons30").await.expect(200).json()["lone_threads"], 2);
}

#[tokio::test]
async fn beside_another_image_there_is_no_lone_one() {
    let stand_in = StandIn::new();
    let two = |config: &mut equipoise::config::Config| (config.sessions, config.lone_threads) = (Some(2), Some(2));
    let app = Setup::new().config(two).start_with(&stand_in);
    stand_in.hold();
    let ask = || async { app.classify("", image("key", 0)).await.expect(200) };
    let release = async {
        stand_in.begun(2).await;
        stand_in.release();
    };
    tokio::join!(ask(), ask(), release);
    assert_eq!(app.metrics().await.get(LONE), 0.0);
    // A worker may be on its way back to the queue when the next image comes.
    guard("lone images", async {
        while app.metrics().await.get(LONE) < 1.0 {
            ask().await;
        }
    })
    .await;
}
