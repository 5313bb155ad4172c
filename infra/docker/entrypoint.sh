#!/bin/bash
# What a container of this image runs: `fuxi` with the container's arguments. Spark on Kubernetes starts containers
# with "driver" or "executor" as the first argument and says the rest in the environment.
set -euo pipefail

# An id without a name (OpenShift, `docker run --user`): the JVM looks it up. /etc/passwd stays as it is.
if ! getent passwd "$(id -u)" > /dev/null && [[ -e "${NSS_WRAPPER:=/usr/lib/$(uname -m)-linux-gnu/libnss_wrapper.so}" ]]; then
  NSS_WRAPPER_PASSWD=$(mktemp) && NSS_WRAPPER_GROUP=/etc/group LD_PRELOAD=$NSS_WRAPPER
  { cat /etc/passwd && echo "fuxi:x:$(id -u):$(id -g)::${HOME:-/tmp}:/bin/false"; } > "$NSS_WRAPPER_PASSWD"
  export NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP LD_PRELOAD
fi

case "${1:-}" in
  driver)
    shift
    set -- "$SPARK_HOME/bin/spark-submit" --deploy-mode client \
      --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" \
      --conf "spark.executorEnv.SPARK_DRIVER_POD_IP=$SPARK_DRIVER_BIND_ADDRESS" \
      "$@"
    ;;
  executor)
    options=() # SPARK_JAVA_OPT_0, _1, ...: one Java option each
    while read -r name; do options+=("${!name}"); done < <(compgen -e | grep '^SPARK_JAVA_OPT_' | sort -t_ -k4n)
    classes="${SPARK_CONF_DIR:-$SPARK_HOME/conf}:${SPARK_CLASSPATH:+$SPARK_CLASSPATH:}$SPARK_HOME/jars/*"
    set -- java "${options[@]}" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" -cp "$classes" \
      org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
      --driver-url "$SPARK_DRIVER_URL" \
      --executor-id "$SPARK_EXECUTOR_ID" \
      --cores "$SPARK_EXECUTOR_CORES" \
      --app-id "$SPARK_APPLICATION_ID" \
      --hostname "$SPARK_EXECUTOR_POD_IP" \
      --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" \
      --podName "$SPARK_EXECUTOR_POD_NAME"
    ;;
  *)
    set -- fuxi "$@"
    ;;
esac
exec "$@"
