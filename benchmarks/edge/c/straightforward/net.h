#define NET_CHANNELS 1
#define NET_LENGTH 1
int net_predict(const float *series);
