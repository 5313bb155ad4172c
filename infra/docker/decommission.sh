#!/bin/bash
# Kubernetes runs this before it stops an executor's pod: the executor takes no more tasks and leaves when it has
# finished those it has. What is unfinished when the pod's grace period ends runs again elsewhere.
set -u

executor=$(pgrep -f org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend) || exit 0
kill -PWR "$executor"
while kill -0 "$executor" 2>/dev/null; do sleep 1; done
