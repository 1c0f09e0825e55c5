# Beanstalkd as Debian packages it, with its jobs on a volume.
ARG DEBIAN_IMAGE=debian:bookworm-slim

FROM ${DEBIAN_IMAGE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends beanstalkd \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /data
USER 10001:10001
VOLUME /data
EXPOSE 11300
# Beanstalkd 1.12 answers TERM by killing itself, which the kernel does not allow to process 1: it would run until
# Docker's timeout. TERM has no advantage over KILL: Beanstalkd has no work to finish, its binlog is on the volume.
STOPSIGNAL SIGKILL
# It accepts connections before it has read its binlog; only an answer shows that it is ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/11300; printf 'stats\\r\\n' >&3; read -r -t 4 reply <&3; [[ $reply == OK* ]]"]
ENTRYPOINT ["beanstalkd"]
CMD ["-l", "0.0.0.0", "-p", "11300", "-b", "/data"]
