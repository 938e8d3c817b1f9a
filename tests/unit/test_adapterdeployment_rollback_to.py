"""``spec.rollbackTo``: traffic goes to an earlier revision because somebody asks for it."""

from __future__ import annotations

import pytest

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_operator.adapterdeployment.revision import spec_hash
from finetune_operator.framework.objects import DEPLOYMENTS, JOBS
from tests.support.played_pods import BETTER, GOOD
from tests.support.promoted import crash, crashed_before, passes, promoted, until
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, shown
from tests.support.serving_specs import SETTINGS, following, pinned, published

pytestmark = pytest.mark.unit


class TestByTheSpec:
    def test_to_the_revision_before_at_once(self) -> None:
        cluster, old, new = promoted()
        passes(cluster)
        asked = set(cluster.objects[JOBS])
        cluster.spec["rollbackTo"] = old
        cluster.reconcile()
        assert cluster.traffic() == old
        assert set(cluster.objects[JOBS]) <= asked, "nothing is verified again"
        passes(cluster)
        assert condition(cluster.status, "RolledBack") == ("True", Reason.ROLLED_BACK)
        assert cluster.status.phase is ServingPhase.READY
        assert [each.type for each in cluster.events if each.reason == Reason.ROLLED_BACK] == ["Normal"]
        del cluster.spec["rollbackTo"]
        cluster.reconcile()
        assert cluster.traffic() == old, "what was left is proved again first"
        until(cluster, lambda: cluster.traffic() == new)
        passes(cluster)
        assert "RolledBack" not in shown(cluster.status)

    def test_what_was_left_ends_and_gets_no_traffic_by_itself(self) -> None:
        """Somebody has found it to be bad: clients that keep their connections open must leave it, too."""
        cluster, old, new = promoted()
        passes(cluster)
        cluster.spec["rollbackTo"] = old
        passes(cluster)
        assert cluster.status.previous is None
        assert set(cluster.objects[DEPLOYMENTS]) == {f"demo-{old}"}
        crash(cluster, old)
        passes(cluster)
        assert cluster.traffic() == old
        assert [line.revision for line in cluster.status.revisions] == [new, old]

    def test_what_an_earlier_version_kept_of_it_gets_no_traffic_either(self) -> None:
        """It kept what was left, as long as after any update: an upgrade of the operator may come in that time."""
        cluster, old, new = promoted()
        passes(cluster)
        cluster.spec = pinned(GOOD, keepLastGood="10m")
        cluster.reconcile()
        kept = cluster.status.previous
        assert kept is not None
        assert (cluster.traffic(), kept.revision) == (old, new)
        cluster.spec = pinned(BETTER, keepLastGood="10m", rollbackTo=old)
        assert cluster.status.stable is not None
        asked = spec_hash(AdapterDeploymentSpec.model_validate(cluster.spec))
        cluster.status = cluster.status.model_copy(
            update={"stable": cluster.status.stable.model_copy(update={"spec_hash": asked})}
        )
        crash(cluster, old)
        passes(cluster)
        assert cluster.traffic() == old
        assert cluster.status.previous is None
        assert set(cluster.objects[DEPLOYMENTS]) == {f"demo-{old}"}

    def test_what_served_before_stays_where_it_names_what_serves(self) -> None:
        """Nobody has rejected that one."""
        cluster, old, new = promoted()
        passes(cluster)
        cluster.spec["rollbackTo"] = new
        passes(cluster)
        assert cluster.status.previous is not None
        crash(cluster, new)
        passes(cluster)
        assert cluster.traffic() == old

    def test_what_served_before_stays_where_the_source_had_gone_back(self) -> None:
        """Nobody has rejected that one either, though it is the later of the two."""
        cluster, old, new = promoted()
        passes(cluster)
        cluster.spec = pinned(GOOD, keepLastGood="10m")
        passes(cluster)
        assert cluster.traffic() == old
        cluster.spec["rollbackTo"] = old
        passes(cluster)
        assert cluster.status.previous is not None
        crash(cluster, old)
        passes(cluster)
        assert cluster.traffic() == new

    def test_to_one_whose_pods_crashed_long_ago(self) -> None:
        cluster, old, _ = promoted()
        passes(cluster)
        crashed_before(cluster, old)
        cluster.spec["rollbackTo"] = old
        passes(cluster)
        assert cluster.traffic() == old
        assert condition(cluster.status, "RolledBack") == ("True", Reason.ROLLED_BACK)
        assert cluster.status.phase is ServingPhase.READY

    def test_to_an_earlier_one_which_is_proved_again(self) -> None:
        cluster, old, new = promoted()
        cluster.settle()
        cluster.spec["rollbackTo"] = old
        cluster.reconcile()
        assert cluster.status.candidate is not None
        assert (cluster.status.candidate.revision, cluster.status.candidate.state) == (old, RevisionState.STARTING)
        assert cluster.traffic() == new
        until(cluster, lambda: cluster.traffic() == old)
        cluster.settle()
        assert condition(cluster.status, "RolledBack") == ("True", Reason.ROLLED_BACK)
        assert [line.revision for line in cluster.status.revisions] == [old, new]

    @pytest.mark.slow
    def test_to_one_whose_runtime_the_platform_no_longer_offers_like_that(self) -> None:
        cluster, old, _ = promoted()
        cluster.settle()
        changed = SETTINGS.runtimes["tgi-cpu"].model_copy(update={"image": "images/tgi-cpu:2"})
        cluster.settings = SETTINGS.model_copy(update={"runtimes": {"tgi-cpu": changed}})
        cluster.settle()
        cluster.spec["rollbackTo"] = old
        cluster.settle()
        assert cluster.traffic() == old
        live = cluster.objects[DEPLOYMENTS][f"demo-{old}"]
        assert live["spec"]["template"]["spec"]["containers"][0]["image"] == "images/tgi-cpu:1"

    def test_what_the_source_publishes_meanwhile_is_not_followed(self) -> None:
        cluster = ServingCluster(spec=following(), source=published(GOOD))
        cluster.settle()
        old = cluster.traffic()
        cluster.spec["rollbackTo"] = old
        cluster.settle()
        cluster.source = published(BETTER)
        cluster.settle()
        assert cluster.traffic() == old
        cluster.source = None
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY, "the revision does not need its source"
        cluster.source = published(BETTER)
        del cluster.spec["rollbackTo"]
        cluster.settle()
        assert cluster.traffic() != old

    def test_to_an_unknown_one(self) -> None:
        cluster, old, new = promoted()
        cluster.spec["rollbackTo"] = "0123abcd"
        passes(cluster)
        assert cluster.traffic() == new
        assert condition(cluster.status, "Stalled") == ("True", Reason.REVISION_UNUSABLE)
        message = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
        assert_says(message, "spec.rollbackTo", "0123abcd", new, old)
        assert cluster.status.previous is not None

    def test_not_to_one_whose_signature_was_not_checked(self) -> None:
        """Nor by itself: its pods do not stay once the spec asks for signatures."""
        cluster, old, _ = promoted()
        passes(cluster)
        key = "-----BEGIN PUBLIC KEY-----\nabcd\n-----END PUBLIC KEY-----\n"
        cluster.spec |= {"policy": {"signature": {"publicKeys": [key]}}}
        passes(cluster, 1)
        assert cluster.status.previous is None
        cluster.settle()
        signed = cluster.traffic()
        cluster.spec["rollbackTo"] = old
        passes(cluster)
        assert cluster.traffic() == signed
        message = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
        assert_says(message, "spec.rollbackTo", old, "signature", signed)

    def test_a_reverted_commit_is_as_fast(self) -> None:
        cluster, old, new = promoted()
        passes(cluster)
        cluster.spec = pinned(GOOD, keepLastGood="10m")
        cluster.reconcile()
        assert cluster.traffic() == old
        assert cluster.status.previous is not None
        assert cluster.status.previous.revision == new

    def test_pods_that_do_not_answer_are_proved_again(self) -> None:
        cluster, old, new = promoted()
        cluster.objects[DEPLOYMENTS][f"demo-{old}"]["status"]["readyReplicas"] = 0
        cluster.spec["rollbackTo"] = old
        cluster.reconcile()
        assert cluster.traffic() == new
        assert cluster.status.candidate is not None
        assert cluster.status.previous is None
        cluster.settle()
        assert cluster.traffic() == old

    def test_one_that_fell_is_tried_again_once_a_person_has_settled_it(self) -> None:
        cluster, old, new = promoted()
        crash(cluster, new)
        cluster.settle()
        cluster.spec["rollbackTo"] = old
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY
        assert condition(cluster.status, "RolledBack") == ("True", Reason.ROLLED_BACK)
        del cluster.spec["rollbackTo"]
        cluster.reconcile()
        assert cluster.status.candidate is not None
        assert (cluster.status.candidate.revision, cluster.status.candidate.state) == (new, RevisionState.STARTING)

    def test_one_that_fell_can_be_asked_for_all_the_same(self) -> None:
        cluster, _, new = promoted()
        crash(cluster, new)
        cluster.settle()
        cluster.spec["rollbackTo"] = new
        cluster.settle()
        assert cluster.traffic() == new
